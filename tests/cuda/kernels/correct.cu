// Correct kernels: each uses a part of CUDA that the emulator has to get right. test_emulator.py says what they give.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned char uint8_t;

constexpr unsigned FULL = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(FULL, v, offset);
  return v;
}

// out[b] = sum of row b of x, by warps and then by the first warp.
extern "C" __global__ void __launch_bounds__(256) row_sums(const float* __restrict__ x, const int* count, float* out) {
  __shared__ float part[8];
  float sum = 0.0f;
  for (int i = threadIdx.x; i < *count; i += blockDim.x) sum += x[blockIdx.x * *count + i];
  sum = warp_sum(sum);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = threadIdx.x < 8 ? part[threadIdx.x] : 0.0f;
  for (int offset = 4; offset > 0; offset >>= 1) sum += __shfl_down_sync(FULL, sum, offset);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// out = x transposed, in tiles of 32 by 32 and blocks of 32 by 8 threads; shape: rows, columns.
extern "C" __global__ void transpose(const float* x, const int2* shape, float* out) {
  __shared__ float tile[32][33];
  const int rows = shape->x, columns = shape->y, left = blockIdx.x * 32, top = blockIdx.y * 32;
  for (int i = threadIdx.y; i < 32; i += blockDim.y)
    if (top + i < rows && left + threadIdx.x < columns)
      tile[i][threadIdx.x] = x[(top + i) * columns + left + threadIdx.x];
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += blockDim.y)
    if (left + i < columns && top + threadIdx.x < rows)
      out[(left + i) * rows + top + threadIdx.x] = tile[threadIdx.x][i];
}

// A row of Q8_0 weights (34 bytes a block: scale, 32 codes) by int8 codes of 32 with a scale each; one warp a row.
struct Block {
  __half scale;
  signed char codes[32];
};

__device__ __forceinline__ int four(const signed char* p) {
  const unsigned short* halves = reinterpret_cast<const unsigned short*>(p);
  return halves[0] | halves[1] << 16;
}

extern "C" __global__ void matvec(
    const Block* w, const int* codes, const float* scales, const int* blocks, float* out) {
  const int row = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
  float sum = 0.0f;
  for (int b = lane >> 3; b < *blocks; b += 4) {
    const Block& block = w[row * *blocks + b];
    const int dot = __dp4a(four(block.codes + 4 * (lane & 7)), __ldg(&codes[8 * b + (lane & 7)]), 0);
    sum += float(dot) * (__half2float(block.scale) * scales[b]);
  }
  sum = warp_sum(sum);
  if (lane == 0) out[row] = sum;
}

// Floats to half and bfloat16 and back, and one fused multiply-add of pairs of halves.
extern "C" __global__ void narrow(
    const float2* x, __half2* half_out, __nv_bfloat16* bfloat_out, float2* back, __half2* fused) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const __half2 h = __float22half2_rn(x[i]);
  half_out[i] = h;
  bfloat_out[2 * i] = __float2bfloat16_rn(x[i].x);
  bfloat_out[2 * i + 1] = __ushort_as_bfloat16(__bfloat16_as_ushort(__float2bfloat16(x[i].y)));
  back[i] = make_float2(__low2float(h), __bfloat162float(bfloat_out[2 * i + 1]));
  fused[i] = __hfma2(h, h, __half2half2(__ushort_as_half(0x3c00)));
}

// Votes and reductions of a warp, with two halves of it voting apart; counts of the block.
extern "C" __global__ void votes(const int* x, unsigned* out) {
  const int t = threadIdx.x, lane = t & 31;
  unsigned* mine = out + 12 * t;
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  mine[0] = __ballot_sync(FULL, x[t] & 1);
  if (lane < 16)
    mine[1] = __ballot_sync(half, x[t] > 0);
  else
    mine[1] = __ballot_sync(half, x[t] > 0);
  mine[2] = __any_sync(FULL, x[t] > 90) + 2 * __all_sync(FULL, x[t] > -90);
  mine[3] = unsigned(__reduce_add_sync(FULL, x[t]));
  mine[4] = unsigned(__reduce_min_sync(half, x[t]));
  mine[5] = __reduce_max_sync(FULL, unsigned(x[t]));
  mine[6] = __match_any_sync(FULL, x[t] & 3);
  mine[7] = unsigned(__syncthreads_count(x[t] > 0));
  mine[8] = unsigned(__syncthreads_or(x[t] > 95)) + 2 * unsigned(__syncthreads_and(x[t] > -1000));
  mine[9] = unsigned(__shfl_up_sync(FULL, x[t], 3));
  mine[10] = unsigned(__shfl_sync(FULL, x[t], 5, 8));
  __syncwarp();
  mine[11] = unsigned(__shfl_down_sync(FULL, (long long)x[t] << 20, 2, 16) >> 20);
}

// A histogram in shared memory, added to one in global memory, and the atomics of one word each.
extern "C" __global__ void atomics(
    const int* x, int* histogram, float* total, unsigned long long* count, int* extremes) {
  __shared__ int mine[16];
  if (threadIdx.x < 16) mine[threadIdx.x] = 0;
  __syncthreads();
  const int value = x[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&mine[value & 15], 1);
  atomicAdd(total, float(value));
  atomicAdd(count, 3ull);
  atomicMax(&extremes[0], value);
  atomicMin(&extremes[1], value);
  if (atomicCAS(&extremes[2], -1, value) == -1) atomicExch(&extremes[3], value);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&histogram[threadIdx.x], mine[threadIdx.x]);
}

// The last block to finish adds up what each block left: parts, then a count of blocks that starts at 0.
extern "C" __global__ void last_block_sums(const int* x, int* parts, unsigned* done, int* total) {
  __shared__ int mine, last;
  if (threadIdx.x == 0) mine = 0;
  __syncthreads();
  atomicAdd(&mine, x[blockIdx.x * blockDim.x + threadIdx.x]);
  __syncthreads();
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = mine;
    __threadfence();
    last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int b = 0; b < int(gridDim.x); b++) sum += parts[b];
    *total = sum;
  }
}

// Softmax of a row in dynamic shared memory: values, then one word for each warp.
extern "C" __global__ void softmax(const float* x, const int* count, float* out) {
  extern __shared__ __align__(16) float row[];
  float* part = row + *count;
  const int warps = blockDim.x >> 5, warp = threadIdx.x >> 5;
  float most = __int_as_float(0xff800000);
  for (int i = threadIdx.x; i < *count; i += blockDim.x) most = fmaxf(most, row[i] = x[blockIdx.x * *count + i]);
  for (int offset = 16; offset > 0; offset >>= 1) most = fmaxf(most, __shfl_xor_sync(FULL, most, offset));
  if ((threadIdx.x & 31) == 0) part[warp] = most;
  __syncthreads();
  for (int w = 0; w < warps; w++) most = fmaxf(most, part[w]);
  __syncthreads();
  float sum = 0.0f;
  for (int i = threadIdx.x; i < *count; i += blockDim.x) sum += row[i] = __expf(row[i] - most);
  sum = warp_sum(sum);
  if ((threadIdx.x & 31) == 0) part[warp] = sum;
  __syncthreads();
  sum = 0.0f;
  for (int w = 0; w < warps; w++) sum += part[w];
  for (int i = threadIdx.x; i < *count; i += blockDim.x) out[blockIdx.x * *count + i] = __fdividef(row[i], sum);
}

// Integer intrinsics of pairs of words.
extern "C" __global__ void bits(const uint2* x, unsigned* out) {
  const uint2 v = x[threadIdx.x];
  unsigned* mine = out + 12 * threadIdx.x;
  mine[0] = __popc(v.x) | __clz(int(v.y)) << 8 | __ffs(int(v.x)) << 16;
  mine[1] = __brev(v.x);
  mine[2] = __byte_perm(v.x, v.y, 0x6240);
  mine[3] = __byte_perm(v.x, v.y, 0x9c1f);
  mine[4] = __dp4a(v.x, v.y, 7u);
  mine[5] = unsigned(__dp4a(int(v.x), int(v.y), -7));
  mine[6] = __funnelshift_r(v.x, v.y, 13);
  mine[7] = __vsubss4(v.x, v.y);
  mine[8] = __umulhi(v.x, v.y);
  mine[9] = __float_as_uint(__uint_as_float(v.x));
  mine[10] = unsigned(__float2int_rn(__int2float_rn(int(v.x) >> 12) * 0.5f));
  mine[11] = unsigned(min(int(v.x), int(v.y))) ^ max(v.x, v.y);
}

// Each thread's own number, from all of its indices.
extern "C" __global__ void numbers(int* out) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int size = blockDim.x * blockDim.y * blockDim.z;
  out[block * size + thread] = block * 1000 + thread;
}

// Scalars, and an fma of each.
extern "C" __global__ void scalars(float* out, int n, float x, unsigned long long wide, double y) {
  out[threadIdx.x] = fmaf(x, float(n), float(wide >> 32)) + float(y);
}

// out[16 x 8] = a[16 x 16] b[16 x 8] of halves: fragments by ldmatrix, product by mma. All matrices are row by row.
extern "C" __global__ void tensor(const __half* a, const __half* b, float* out) {
  __shared__ __align__(16) __half tile[16][16], other[16][8];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) tile[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) other[i / 8][i % 8] = b[i];
  __syncwarp();
  unsigned left[4], right[2];
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#ifdef BRIOLETTE_EMULATED
  emulated_ldmatrix(left, 4, &tile[lane % 16][lane / 16 * 8]);
  emulated_ldmatrix(right, 2, &other[lane % 16][0], true);
  emulated_mma_f16(sum, left, right, sum);
#else
  const unsigned row = unsigned(__cvta_generic_to_shared(&tile[lane % 16][lane / 16 * 8]));
  const unsigned column = unsigned(__cvta_generic_to_shared(&other[lane % 16][0]));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(left[0]), "=r"(left[1]), "=r"(left[2]), "=r"(left[3]) : "r"(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(right[0]), "=r"(right[1]) : "r"(column));
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#endif
  for (int i = 0; i < 4; i++) out[(lane / 4 + (i >= 2 ? 8 : 0)) * 8 + lane % 4 * 2 + (i & 1)] = sum[i];
}

// The same for bytes: a[16 x 32] b[32 x 8]; b comes column by column, so that four neighbours are a register.
extern "C" __global__ void tensor_bytes(const int* a, const int* b, int* out) {
  const int lane = threadIdx.x, group = lane / 4, within = lane % 4;
  unsigned left[4], right[2];
  for (int i = 0; i < 4; i++) left[i] = unsigned(a[(group + (i & 1 ? 8 : 0)) * 8 + within + (i >= 2 ? 4 : 0)]);
  for (int i = 0; i < 2; i++) right[i] = unsigned(b[group * 8 + within + 4 * i]);
  int sum[4] = {0, 0, 0, 0};
#ifdef BRIOLETTE_EMULATED
  emulated_mma_s8(sum, left, right, sum);
#else
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#endif
  for (int i = 0; i < 4; i++) out[(group + (i >= 2 ? 8 : 0)) * 8 + within * 2 + (i & 1)] = sum[i];
}
