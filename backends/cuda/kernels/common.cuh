// What all kernels share: integer types, numbers in 16 bits, loads of any alignment, sums of a warp and of a block.
// Nothing is included but what a run-time compiler brings.
#include <cuda_fp16.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#define ALL_LANES 0xffffffffu
#define LOWEST (-3.0e38f)  // below any score: an infinity would make NaN of a difference

// --- numbers ---

__device__ __forceinline__ float f16_value(u16 bits) { return __half2float(__ushort_as_half(bits)); }

__device__ __forceinline__ u16 f16_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }

// Two numbers as f16 in a word.
__device__ __forceinline__ u32 two_halves(float low, float high) {
  return (u32)f16_bits(low) | (u32)f16_bits(high) << 16;
}

// Two numbers as sums of two in f16 each, which keep 22 bits of them: first what is nearest, then the rest.
__device__ __forceinline__ void split_halves(float low, float high, u32& nearest, u32& rest) {
  nearest = two_halves(low, high);
  rest = two_halves(low - f16_value((u16)nearest), high - f16_value((u16)(nearest >> 16)));
}

__device__ __forceinline__ float bf16_value(u16 bits) { return __uint_as_float((u32)bits << 16); }

// Round to nearest, ties to even; of a NaN whose low bits alone are set, an infinity would be left: none comes here.
__device__ __forceinline__ u16 bf16_bits(float x) {
  const u32 bits = __float_as_uint(x);
  return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

struct f32 {
  typedef float stored;
  static __device__ __forceinline__ float get(const float* p) { return *p; }
  static __device__ __forceinline__ void put(float* p, float x) { *p = x; }
};

struct f16 {
  typedef u16 stored;
  static __device__ __forceinline__ float get(const u16* p) { return f16_value(*p); }
  static __device__ __forceinline__ void put(u16* p, float x) { *p = f16_bits(x); }
};

struct bf16 {
  typedef u16 stored;
  static __device__ __forceinline__ float get(const u16* p) { return bf16_value(*p); }
  static __device__ __forceinline__ void put(u16* p, float x) { *p = bf16_bits(x); }
};

// 1 / sqrt(x), both rounded exactly.
__device__ __forceinline__ float rsqrt_exact(float x) { return 1.0f / sqrtf(x); }

__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// Bits that order as the floats do, NaN before all.
__device__ __forceinline__ u32 sort_key(float x) {
  if (x != x) return 0xFFFFFFFFu;
  const u32 bits = __float_as_uint(x + 0.0f);  // -0 is no less than 0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// --- loads: GGUF blocks may begin at any multiple of ALIGN bytes ---

template <int ALIGN>
__device__ __forceinline__ u32 load_word(const u8* p) {
  if (ALIGN % 4 == 0) return *(const u32*)p;
  if (ALIGN % 2 == 0) return (u32)((const u16*)p)[0] | (u32)((const u16*)p)[1] << 16;
  return (u32)p[0] | (u32)p[1] << 8 | (u32)p[2] << 16 | (u32)p[3] << 24;
}

template <int ALIGN>
__device__ __forceinline__ u16 load_half(const u8* p) {
  return ALIGN % 2 == 0 ? *(const u16*)p : (u16)(p[0] | p[1] << 8);
}

// 16 bytes as four words.
template <int ALIGN>
__device__ __forceinline__ void load_line(const u8* p, u32 words[4]) {
  if (ALIGN % 16 == 0) {
    const uint4 line = *(const uint4*)p;
    words[0] = line.x, words[1] = line.y, words[2] = line.z, words[3] = line.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = load_word<ALIGN>(p + 4 * i);
  }
}

// --- sums ---

// The sum over each LANES neighbouring lanes of a warp, in all of them.
template <int LANES>
__device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
  return x;
}

__device__ __forceinline__ float lanes_max(float x) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
  return x;
}

struct Sum {
  static __device__ __forceinline__ float none() { return 0.0f; }
  static __device__ __forceinline__ float two(float a, float b) { return a + b; }
};

struct Max {
  static __device__ __forceinline__ float none() { return LOWEST; }
  static __device__ __forceinline__ float two(float a, float b) { return fmaxf(a, b); }
};

// All threads of a block give a value and get their sum (or maximum). `partial` is shared memory of 32 floats.
template <class How, int THREADS>
__device__ __forceinline__ float block_reduce(float x, float* partial) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) x = How::two(x, __shfl_xor_sync(ALL_LANES, x, apart));
  if (THREADS == 32) return x;
  __syncthreads();  // what was read of `partial` before is done with
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  x = How::none();
#pragma unroll
  for (int i = 0; i < THREADS / 32; i++) x = How::two(x, partial[i]);
  return x;
}

// Where a plane keeps a position: the first `sink` of them stay, the others go round behind those. Positions come as 32
// bits, and to divide 64 takes many instructions and registers.
__device__ __forceinline__ i64 place_in_ring(i64 position, i64 capacity, int sink) {
  return position < sink ? position : (i64)((u32)(position - sink) % (u32)(capacity - sink)) + sink;
}
