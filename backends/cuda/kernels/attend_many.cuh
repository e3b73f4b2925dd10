// Attention of many rows of one sequence, in f16 on tensor cores with f32 sums and an online softmax
// (FlashAttention-2, Dao 2023). ROWS pairs of a token and one of its group's heads share a tile of positions.
//
// Scores may be large, and eleven bits of a query would be felt in their exponentials. So queries, weights, and planes
// that have more bits are sums of two numbers in f16, and products of the lesser parts with each other are left out.
//
// `Spec` as in attend.cuh, with WARPS = 8 and POSITIONS = ROWS = 32.
template <class Spec>
struct AttendTiles {
  static const int ROWS = 32, POSITIONS = 32, THREADS = 256;
  static const int DEPTH = (Spec::QUERY + 15) / 16 * 16, WIDTH = (Spec::VALUE + 63) / 64 * 64;
  static const bool WIDE = Spec::Keys::WIDE || Spec::Values::WIDE || Spec::NearKeys::WIDE || Spec::NearValues::WIDE;
  // Dimensions of K and V that are there at a time: large heads would not fit as a whole.
  static const int PARTS = WIDE ? 2 : 1, CHUNK = 256 / PARTS;
  static const int K_DEPTH = DEPTH < CHUNK ? DEPTH : CHUNK, V_WIDTH = WIDTH < CHUNK ? WIDTH : CHUNK;
  static const int Q_STRIDE = DEPTH + 8, K_STRIDE = K_DEPTH + 8, P_STRIDE = POSITIONS + 8;  // padded: see `Gemm`
  static const int N_TILES = WIDTH / 64;  // of 8 dimensions of V, for each warp

  struct Shared {
    __align__(16) u16 q[2][ROWS * Q_STRIDE];
    union {
      u16 k[PARTS][POSITIONS * K_STRIDE];
      u16 v[PARTS][V_WIDTH * P_STRIDE];  // turned over: positions lie side by side
    };
    u16 weights[2][ROWS * P_STRIDE];
    float scores[ROWS * (POSITIONS + 1)];
    float peak[ROWS], total[ROWS], fade[ROWS];
    i64 last[ROWS];
  };

  const u8 *k, *v;  // of the planes that positions are read from, main or near
  i64 capacity;
  float sums[2][N_TILES][4];

  // Which of positions begin, begin + 1, … are read from these planes, by a row that sees up to `last`.
  struct Window {
    i64 begin, stop;  // for all rows together
    bool near;
    __device__ __forceinline__ bool has(i64 position, i64 last) const {
      const bool seen = position <= last && (Spec::WINDOW == 0 || position > last - Spec::WINDOW);
      const bool close = Spec::NEAR && (position < Spec::SINK || position > last - Spec::RECENT);
      return seen && close == near;
    }
  };

  template <class Keys, class Values>
  __device__ __forceinline__ void walk(const Window& window, int sink, Shared& own) {
    for (i64 begin = window.begin; begin < window.stop; begin += POSITIONS) {
      const int count = window.stop - begin < POSITIONS ? (int)(window.stop - begin) : POSITIONS;
      float c[4] = {0.0f, 0.0f, 0.0f, 0.0f}, rest[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
      for (int from = 0; from < DEPTH; from += K_DEPTH) {
        __syncthreads();
        bring_keys<Keys, Values>(begin, count, sink, from, own);
        __syncthreads();
        multiply(from, own, c, rest);
      }
      score(window, begin, count, own, c, rest);
      __syncthreads();
      soften(own);
#pragma unroll
      for (int n = 0; n < N_TILES; n += V_WIDTH / 64) {
        if (n > 0) __syncthreads();
        bring_values<Values>(begin, count, sink, 64 * n, own);
        __syncthreads();
        accumulate(n, own);
      }
    }
  }

  // Dimensions of K from `from` on, of all positions of the tile.
  template <class Keys, class Values>
  __device__ __forceinline__ void bring_keys(i64 begin, int count, int sink, int from, Shared& own) {
#pragma unroll(Keys::AT_ONCE)
    for (int i = threadIdx.x; i < POSITIONS * (K_DEPTH / 4); i += THREADS) {
      const int p = i / (K_DEPTH / 4), at = i % (K_DEPTH / 4) * 4, d = from + at;
      float4 four = make_float4(0, 0, 0, 0);
      if (p < count && d < Spec::QUERY) {
        const i64 place = place_in_ring(begin + p, capacity, sink);
        four = d < Spec::KEY ? Keys::four(k, capacity, place, d) : Values::four(v, capacity, place, d);
      }
      u32 halves[2], rest[2];
      split_halves(four.x, four.y, halves[0], rest[0]);
      split_halves(four.z, four.w, halves[1], rest[1]);
      *(uint2*)(own.k[0] + p * K_STRIDE + at) = make_uint2(halves[0], halves[1]);
      if (WIDE) *(uint2*)(own.k[PARTS - 1] + p * K_STRIDE + at) = make_uint2(rest[0], rest[1]);
    }
  }

  // The same of V.
  template <class Values>
  __device__ __forceinline__ void bring_values(i64 begin, int count, int sink, int from, Shared& own) {
#pragma unroll(Values::AT_ONCE)
    for (int i = threadIdx.x; i < POSITIONS / 2 * (V_WIDTH / 4); i += THREADS) {
      const int p = i / (V_WIDTH / 4) * 2, at = i % (V_WIDTH / 4) * 4, d = from + at;
      float4 two[2] = {make_float4(0, 0, 0, 0), make_float4(0, 0, 0, 0)};
      for (int j = 0; j < 2; j++) {
        if (p + j >= count || d >= Spec::VALUE) continue;
        two[j] = Values::four(v, capacity, place_in_ring(begin + p + j, capacity, sink), d);
      }
      put_values(own, at, p, two[0].x, two[1].x);
      put_values(own, at + 1, p, two[0].y, two[1].y);
      put_values(own, at + 2, p, two[0].z, two[1].z);
      put_values(own, at + 3, p, two[0].w, two[1].w);
    }
  }

  // One dimension of two positions.
  static __device__ __forceinline__ void put_values(Shared& own, int at, int p, float first, float second) {
    u32 halves, rest;
    split_halves(first, second, halves, rest);
    *(u32*)(own.v[0] + at * P_STRIDE + p) = halves;
    if (WIDE) *(u32*)(own.v[PARTS - 1] + at * P_STRIDE + p) = rest;
  }

  // Each warp one tile of 16 rows by 8 positions, over the dimensions that are there.
  __device__ __forceinline__ void multiply(int from, Shared& own, float c[4], float rest[4]) {
    const int m = threadIdx.x / 32 / 4 * 16, n = threadIdx.x / 32 % 4 * 8;
    const int stop = DEPTH - from < K_DEPTH ? DEPTH - from : K_DEPTH;
    for (int d = 0; d < stop; d += 16) {
      u32 a[4], a_rest[4], b[2];
      tile_left<Q_STRIDE>(own.q[0], m, from + d, a);
      tile_left<Q_STRIDE>(own.q[1], m, from + d, a_rest);
      tile_right<K_STRIDE>(own.k[0], n, d, b);
      mma_16_8_16(c, a, b);
      mma_16_8_16(rest, a_rest, b);
      if (WIDE) {
        tile_right<K_STRIDE>(own.k[PARTS - 1], n, d, b);
        mma_16_8_16(rest, a, b);
      }
    }
  }

  __device__ __forceinline__ void score(
      const Window& window, i64 begin, int count, Shared& own, const float c[4], const float rest[4]) {
    const int lane = threadIdx.x % 32, m = threadIdx.x / 32 / 4 * 16, n = threadIdx.x / 32 % 4 * 8;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = m + lane / 4 + i / 2 * 8, p = n + lane % 4 * 2 + i % 2;
      const bool seen = p < count && window.has(begin + p, own.last[row]);
      own.scores[row * (POSITIONS + 1) + p] = seen ? score_cap<Spec>(c[i] + rest[i]) : LOWEST;
    }
  }

  // A row's 32 scores in the lanes of a warp, four rows to each.
  __device__ __forceinline__ void soften(Shared& own) {
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < ROWS; row += THREADS / 32) {
      const float s = own.scores[row * (POSITIONS + 1) + lane], before = own.peak[row];
      const float peak = fmaxf(before, lanes_max(s));
      // A row that has seen nothing yet has the lowest peak, and what is not seen has that for a score.
      const float e = s > LOWEST ? expf(s - peak) : 0.0f;
      const float total = lanes_sum<32>(e);
      const u16 halves = f16_bits(e);
      own.weights[0][row * P_STRIDE + lane] = halves;
      own.weights[1][row * P_STRIDE + lane] = f16_bits(e - f16_value(halves));
      __syncwarp();
      if (lane == 0) {
        const float fade = expf(before - peak);
        own.fade[row] = fade;
        own.total[row] = own.total[row] * fade + total;
        own.peak[row] = peak;
      }
    }
  }

  // Each warp all rows by an eighth of the dimensions that are there: tiles from `first` on.
  __device__ __forceinline__ void accumulate(int first, Shared& own) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < 2; m++) {
      const float above = own.fade[m * 16 + lane / 4], below = own.fade[m * 16 + lane / 4 + 8];
#pragma unroll
      for (int n = first; n < first + V_WIDTH / 64 && n < N_TILES; n++) {
        sums[m][n][0] *= above, sums[m][n][1] *= above, sums[m][n][2] *= below, sums[m][n][3] *= below;
      }
    }
#pragma unroll
    for (int p = 0; p < POSITIONS; p += 16) {
      u32 a[2][4], a_rest[2][4];
#pragma unroll
      for (int m = 0; m < 2; m++) {
        tile_left<P_STRIDE>(own.weights[0], m * 16, p, a[m]);
        tile_left<P_STRIDE>(own.weights[1], m * 16, p, a_rest[m]);
      }
#pragma unroll
      for (int n = first; n < first + V_WIDTH / 64 && n < N_TILES; n++) {
        const int row = (n - first) * 64 + warp * 8;
        u32 b[2], b_rest[2];
        tile_right<P_STRIDE>(own.v[0], row, p, b);
        if (WIDE) tile_right<P_STRIDE>(own.v[PARTS - 1], row, p, b_rest);
#pragma unroll
        for (int m = 0; m < 2; m++) {
          mma_16_8_16(sums[m][n], a[m], b);
          mma_16_8_16(sums[m][n], a_rest[m], b);
          if (WIDE) mma_16_8_16(sums[m][n], a[m], b_rest);
        }
      }
    }
  }
};

template <class Spec>
__device__ __forceinline__ void attend_many(
    const float* q, const u8* k, const u8* v, const u8* near_k, const u8* near_v, const i64* capacity,
    const i64* near_capacity, const int* positions, const int* slots, float* out, int tokens, u8* memory) {
  typedef AttendTiles<Spec> Tiles;
  typedef typename Tiles::Window Window;
  typename Tiles::Shared& own = *(typename Tiles::Shared*)memory;
  Tiles tile;
  const int group = blockIdx.y, begin = blockIdx.x * Tiles::ROWS, rows = tokens * Spec::SHARE - begin;
  for (int i = threadIdx.x; i < Tiles::ROWS * (Tiles::DEPTH / 2); i += Tiles::THREADS) {
    const int r = i / (Tiles::DEPTH / 2), d = i % (Tiles::DEPTH / 2) * 2;
    const int pair = begin + (r < rows ? r : rows - 1), token = pair / Spec::SHARE;
    const float* from = q + (i64)token * Spec::Q_STRIDE + (group * Spec::SHARE + pair % Spec::SHARE) * Spec::QUERY + d;
    u32 halves, rest;
    split_halves(d < Spec::QUERY ? from[0] : 0.0f, d + 1 < Spec::QUERY ? from[1] : 0.0f, halves, rest);
    *(u32*)(own.q[0] + r * Tiles::Q_STRIDE + d) = halves;
    *(u32*)(own.q[1] + r * Tiles::Q_STRIDE + d) = rest;
    if (d == 0) own.last[r] = positions[token], own.peak[r] = LOWEST, own.total[r] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 2 * Tiles::N_TILES * 4; i++) (&tile.sums[0][0][0])[i] = 0.0f;
  const int first_token = begin / Spec::SHARE, end = begin + (rows < Tiles::ROWS ? rows : Tiles::ROWS) - 1;
  const i64 low = positions[first_token], high = positions[end / Spec::SHARE];
  const i64 first = Spec::WINDOW && low >= Spec::WINDOW ? low - Spec::WINDOW + 1 : 0;
  const i64 ring = (i64)slots[first_token] * Spec::GROUPS + group;
  tile.capacity = *capacity;
  tile.k = k + ring * Spec::Keys::bytes(tile.capacity), tile.v = v + ring * Spec::Values::bytes(tile.capacity);
  Window window = {first, high + 1, false};
  if (Spec::NEAR) {
    window.begin = first < Spec::SINK ? Spec::SINK : first;
    window.stop = high - Spec::RECENT + 1;
  }
  tile.template walk<typename Spec::Keys, typename Spec::Values>(window, 0, own);
  if (Spec::NEAR) {
    tile.capacity = *near_capacity;
    tile.k = near_k + ring * Spec::NearKeys::bytes(tile.capacity);
    tile.v = near_v + ring * Spec::NearValues::bytes(tile.capacity);
    window = {first, high + 1 < Spec::SINK ? high + 1 : Spec::SINK, true};
    tile.template walk<typename Spec::NearKeys, typename Spec::NearValues>(window, Spec::SINK, own);
    i64 recent = low - Spec::RECENT + 1;
    recent = recent < first ? first : recent;
    window = {recent < Spec::SINK ? Spec::SINK : recent, high + 1, true};
    tile.template walk<typename Spec::NearKeys, typename Spec::NearValues>(window, Spec::SINK, own);
  }
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int m = 0; m < 2; m++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = m * 16 + lane / 4 + i / 2 * 8, pair = begin + r;
      if (r >= rows) continue;
      const float factor = 1.0f / own.total[r];
      float* to = out + ((i64)(pair / Spec::SHARE * Spec::GROUPS + group) * Spec::SHARE + pair % Spec::SHARE) * Spec::VALUE;
#pragma unroll
      for (int n = 0; n < Tiles::N_TILES; n++) {
        const int d = n * 64 + warp * 8 + lane % 4 * 2 + i % 2;
        if (d < Spec::VALUE) to[d] = tile.sums[m][n][i] * factor;
      }
    }
  }
}
