// Incorrect kernels, each with the bug that its name says. test_emulator.py says what is reported at the marked lines.
#include <cuda_fp16.h>

constexpr unsigned FULL = 0xffffffffu;

// ---- barriers
extern "C" __global__ void missing_barrier(const int* x, int* out) {
  __shared__ int tile[128];
  tile[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = tile[127 - threadIdx.x];  // here: missing_barrier
}

extern "C" __global__ void missing_second_barrier(const int* x, int* out) {
  __shared__ int part[4];
  int sum = 0;
  for (int round = 0; round < 2; round++) {
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x[threadIdx.x] + round;  // here: missing_second_barrier
    __syncthreads();
    sum += part[3 - (threadIdx.x >> 5)];
  }
  out[threadIdx.x] = sum;
}

extern "C" __global__ void missing_syncwarp(const int* x, int* out) {
  extern __shared__ int row[];
  row[threadIdx.x] = x[threadIdx.x];
  const int other = __shfl_xor_sync(FULL, x[threadIdx.x], 1);
  out[threadIdx.x] = other + row[threadIdx.x ^ 1];  // here: missing_syncwarp
}

// Neighbouring bytes are each thread's own, which is fine; then a word of them is not.
extern "C" __global__ void bytes_then_words(const int* x, int* out) {
  __shared__ __align__(4) unsigned char tile[128];
  tile[threadIdx.x] = (unsigned char)x[threadIdx.x];
  tile[threadIdx.x]++;
  out[threadIdx.x] = reinterpret_cast<int*>(tile)[threadIdx.x / 4];  // here: bytes_then_words
}

// Each block reads what the next one overwrites.
extern "C" __global__ void blocks_in_place(const int* x, int* out) {
  const int i = 32 * blockIdx.x + threadIdx.x;
  if (threadIdx.x < 32) out[i] = out[i + 32] + 1;  // here: blocks_in_place
}

extern "C" __global__ void divergent_barrier(const int* x, int* out) {
  if (threadIdx.x < 64) {
    __syncthreads();  // here: one
    out[threadIdx.x] = 1;
  } else {
    __syncthreads();  // here: other
  }
}

extern "C" __global__ void barrier_after_return(const int* x, int* out) {
  if (threadIdx.x >= 100) return;
  __syncthreads();  // here: barrier_after_return
  out[threadIdx.x] = 1;
}

extern "C" __global__ void barrier_in_half_a_warp(const int* x, int* out) {
  if (threadIdx.x & 1) __syncthreads();  // here: in_half
  out[threadIdx.x] = __shfl_xor_sync(FULL, x[threadIdx.x], 1);  // here: barrier_in_half_a_warp
}

// ---- masks
extern "C" __global__ void mask_names_the_exited(const int* x, int* out) {
  if ((threadIdx.x & 31) >= 20) return;
  out[threadIdx.x] = __shfl_xor_sync(FULL, x[threadIdx.x], 1);  // here: mask_names_the_exited
}

extern "C" __global__ void mask_without_caller(const int* x, int* out) {
  out[threadIdx.x] = int(__ballot_sync(0x0000ffffu, x[threadIdx.x]));  // here: mask_without_caller
}

extern "C" __global__ void masks_disagree(const int* x, int* out) {
  const unsigned mask = (threadIdx.x & 31) < 16 ? FULL : 0xffff0001u;
  out[threadIdx.x] = __any_sync(mask, x[threadIdx.x]);  // here: masks_disagree
}

extern "C" __global__ void reads_outside_the_mask(const int* x, int* out) {
  if ((threadIdx.x & 31) >= 16) return;
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, x[threadIdx.x], 20);  // here: reads_outside_the_mask
}

// ---- memory
extern "C" __global__ void reads_past_the_end(const int* x, int* out) {
  out[threadIdx.x] = x[threadIdx.x + 1];  // here: reads_past_the_end
}

__device__ __forceinline__ void store(int* out, int i) {
  out[i] = 1;  // here: writes_before_the_start
}

extern "C" __global__ void writes_before_the_start(const int* x, int* out) { store(out, int(threadIdx.x) - 200000); }

extern "C" __global__ void past_dynamic_shared(const int* x, int* out) {
  extern __shared__ int row[];
  row[threadIdx.x + 1] = x[threadIdx.x];  // here: past_dynamic_shared
}

extern "C" __global__ void past_static_shared(const int* x, int* out) {
  __shared__ int row[128];
  row[threadIdx.x + 1] = x[threadIdx.x];  // here: past_static_shared
  __syncthreads();
  out[threadIdx.x] = row[threadIdx.x];
}

struct Block {
  __half scale;
  signed char codes[32];
};

extern "C" __global__ void misaligned(const Block* x, int* out) {
  out[threadIdx.x] = *reinterpret_cast<const int*>(x[threadIdx.x].codes);  // here: misaligned
}

extern "C" __global__ void misaligned_hint(const char* x, int* out) {
  out[threadIdx.x] = __ldg(reinterpret_cast<const int*>(x + 1));  // here: misaligned_hint
}

extern "C" __global__ void uninitialised_shared(const int* x, float* out) {
  __shared__ float tile[128];
  extern __shared__ __half halves[];
  if (threadIdx.x == 7) tile[7] = halves[7] = __float2half(2.0f);
  out[threadIdx.x] = tile[threadIdx.x] + __half2float(halves[threadIdx.x]);
}

// ---- arithmetic
extern "C" __global__ void shifts_too_far(const int* x, int* out) {
  out[threadIdx.x] = 1 << (x[threadIdx.x] + 32);  // here: shifts_too_far
}

extern "C" __global__ void indexes_past_an_array(const int* x, int* out) {
  int table[4] = {1, 2, 3, x[0]};
  out[threadIdx.x] = table[x[threadIdx.x] + 4];  // here: indexes_past_an_array
}

extern "C" __global__ void divides_by_zero(const int* x, int* out) {
  out[threadIdx.x] = 5 / (x[threadIdx.x] - x[threadIdx.x]);  // here: divides_by_zero
}

extern "C" __global__ void recurses(const int* x, int* out) {
  volatile char big[1 << 20];
  big[threadIdx.x] = char(x[threadIdx.x]);  // the line is that of the frame
  out[threadIdx.x] = big[threadIdx.x];
}

extern "C" __global__ void never_ends(const int* x, int* out) {
  volatile const int* flag = x;
  while (*flag == 0) {  // here: never_ends
  }
  out[threadIdx.x] = 1;
}

extern "C" __global__ void asserts(const int* x, int* out) {
  assert(x[threadIdx.x] < 5);  // here: asserts
}
