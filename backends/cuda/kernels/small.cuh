// Kernels of little work: rotary tables and orders, the largest values of a row, look-ups, weighted sums, rotation.

// Cosine and sine of a row's angles; the angle is rounded to f32 first, as elsewhere. Frequencies are divided by
// factors, where there are such, and then scaled.
template <int HALF, bool FACTORS>
__device__ __forceinline__ void rope_table(
    const int* positions, const float* factors, const float* inverse, float scale, float* out) {
  const int row = blockIdx.x;
  for (int i = threadIdx.x; i < HALF; i += blockDim.x) {
    const float turn = FACTORS ? inverse[i] / factors[i] * scale : inverse[i] * scale;
    const double angle = (double)((float)positions[row] * turn);
    out[2 * ((i64)row * HALF + i)] = (float)cos(angle);
    out[2 * ((i64)row * HALF + i) + 1] = (float)sin(angle);
  }
}

// Signs, then the orthonormal Walsh-Hadamard transform of blocks of WIDTH; or back. `values`: shared memory, SIZE.
template <int SIZE, int WIDTH, bool INVERSE>
__device__ __forceinline__ void hadamard(const float* x, const u32* signs, float* out, float* values) {
  const i64 row = blockIdx.x;
  for (int i = threadIdx.x; i < SIZE; i += blockDim.x) {
    const float v = x[row * SIZE + i];
    values[i] = !INVERSE && (signs[i / 32] >> (i % 32) & 1u) ? -v : v;
  }
  for (int half = 1; half < WIDTH; half *= 2) {
    __syncthreads();
    for (int i = threadIdx.x; i < SIZE / 2; i += blockDim.x) {
      const int at = i / half * 2 * half + i % half;
      const float a = values[at], b = values[at + half];
      values[at] = a + b;
      values[at + half] = a - b;
    }
  }
  __syncthreads();
  const float norm = rsqrt_exact((float)WIDTH);
  for (int i = threadIdx.x; i < SIZE; i += blockDim.x) {
    const float v = values[i] * norm;
    out[row * SIZE + i] = INVERSE && (signs[i / 32] >> (i % 32) & 1u) ? -v : v;
  }
}

// The dimensions of the first PAIRS pairs (i, i + HALF) before all others, these times their factors; or put back.
template <int SIZE, int PAIRS, int HALF, bool INVERSE, bool FACTORS>
__device__ __forceinline__ void rotary_first(const float* x, const float* factors, float* out) {
  const i64 row = blockIdx.x;
  for (int i = threadIdx.x; i < SIZE; i += blockDim.x) {
    const int from = i < PAIRS ? i
        : i < 2 * PAIRS ? HALF + i - PAIRS
        : i < PAIRS + HALF ? i - PAIRS
        : i;
    if (INVERSE) {
      out[row * SIZE + from] = x[row * SIZE + i];
    } else {
      const float v = x[row * SIZE + from];
      out[row * SIZE + i] = FACTORS && i >= 2 * PAIRS ? v * factors[from] : v;
    }
  }
}

// Places of the K largest of a row, the largest first, of equals the first one, NaN before all: one warp, K passes over N
// values for the largest that comes after the one before.
template <int N, int K>
__device__ __forceinline__ void top(const float* x, int* ids) {
  const i64 row = blockIdx.x;
  u32 bound = 0;
  int last = -1;
  for (int k = 0; k < K; k++) {
    u32 best = 0;
    int found = -1;
    for (int i = threadIdx.x; i < N; i += 32) {
      const u32 key = sort_key(x[row * N + i]);
      const bool after = last < 0 || key < bound || (key == bound && i > last);
      if (after && (found < 0 || key > best)) best = key, found = i;
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
      const u32 key = __shfl_xor_sync(ALL_LANES, best, apart);
      const int i = __shfl_xor_sync(ALL_LANES, found, apart);
      if (i >= 0 && (found < 0 || key > best || (key == best && i < found))) best = key, found = i;
    }
    bound = best, last = found;
    if (threadIdx.x == 0) ids[row * K + k] = found;
  }
}

// Places of ids below EXPERTS, sorted by id, those of one id in order: a counting sort by one block. Each warp takes
// ids that follow one another, 32 in a turn, and knows where those of each expert go: behind those of the warps before
// it, which are behind those of all lesser experts.
template <int EXPERTS, int WARPS>
struct GroupShared {
  int places[WARPS][EXPERTS];
};

template <int EXPERTS, int WARPS>
__device__ __forceinline__ void group(
    const int* ids, const int* rows, int each, int* order, GroupShared<EXPERTS, WARPS>& own) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = *rows * each;
  const int share = (count + 32 * WARPS - 1) / (32 * WARPS) * 32, begin = warp * share;
  const int end = begin + share < count ? begin + share : count;
  int* mine = own.places[warp];
  for (int e = lane; e < EXPERTS; e += 32) mine[e] = 0;
  __syncwarp();
  for (int i = begin; i < end; i += 32) {
    const int id = i + lane < end ? ids[i + lane] : EXPERTS;
    const u32 same = __match_any_sync(ALL_LANES, id);
    if (id < EXPERTS && __ffs(same) - 1 == lane) mine[id] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  // How many become the first place of each: sums over lesser experts, then over warps.
  if (warp == 0) {
    int before = 0;
    for (int first = 0; first < EXPERTS; first += 32) {
      const int e = first + lane;
      int total = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) total += e < EXPERTS ? own.places[w][e] : 0;
      int sum = total;
#pragma unroll
      for (int apart = 1; apart < 32; apart *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, sum, apart);
        if (lane >= apart) sum += other;
      }
      int at = before + sum - total;
      for (int w = 0; w < WARPS && e < EXPERTS; w++) {
        const int here = own.places[w][e];
        own.places[w][e] = at;
        at += here;
      }
      before += __shfl_sync(ALL_LANES, sum, 31);
    }
  }
  __syncthreads();
  for (int i = begin; i < end; i += 32) {
    const int id = i + lane < end ? ids[i + lane] : EXPERTS;
    const u32 same = __match_any_sync(ALL_LANES, id);
    if (id < EXPERTS) order[mine[id] + __popc(same & ((1u << lane) - 1))] = i + lane;
    __syncwarp();
    if (id < EXPERTS && __ffs(same) - 1 == lane) mine[id] += __popc(same);
    __syncwarp();
  }
}
