// Attention of one row on codes, multiplied in integers on tensor cores where they lie: for planes of at most 6 bits
// and one scale a head, and at most eight query heads of a group.
//
// Levels become bytes, queries and weights two bytes each (128 times one plus another), so that the sixteen rows of a
// tensor core's tile are the high and the low bytes of eight heads. Scores: 8 positions by 32 dimensions at a time,
// four dimensions to a word, as codes lie. Sums of V: 32 positions by 32 dimensions, where words of four dimensions are
// turned into words of four positions first; the scales of V are in the weights.

// What four codes stand for, as bytes with a sign in units of `Codec::step()`.
template <class Codec>
__device__ __forceinline__ u32 levels_of(u32 codes) {
  const u32 low = codes & 0x0f0f0f0fu;
  u32 found = lookup_16(low, Codec::bytes(0), Codec::bytes(1), Codec::bytes(2), Codec::bytes(3));
#pragma unroll
  for (int part = 1; part < (Codec::BITS > 4 ? 1 << (Codec::BITS - 4) : 1); part++) {
    const u32 other = lookup_16(low, Codec::bytes(4 * part), Codec::bytes(4 * part + 1), Codec::bytes(4 * part + 2),
                                Codec::bytes(4 * part + 3));
    // Bytes whose high bits are `part`: their difference is zero, which alone has no bit left after this.
    const u32 apart = (codes >> 4 & 0x03030303u) ^ (u32)part * 0x01010101u;
    const u32 mask = ((apart | apart >> 1) & 0x01010101u) * 0xffu;
    found = (found & mask) | (other & ~mask);
  }
  return found;
}

// Words of four bytes each turned over: word i has the i-th byte of all.
__device__ __forceinline__ void turn_over(u32 w[4]) {
  const u32 a = __byte_perm(w[0], w[1], 0x5140), b = __byte_perm(w[2], w[3], 0x5140);
  const u32 c = __byte_perm(w[0], w[1], 0x7362), d = __byte_perm(w[2], w[3], 0x7362);
  w[0] = __byte_perm(a, b, 0x5410), w[1] = __byte_perm(a, b, 0x7632);
  w[2] = __byte_perm(c, d, 0x5410), w[3] = __byte_perm(c, d, 0x7632);
}

__device__ __forceinline__ int high_byte(int q) { return (q + 64) >> 7; }

template <class Spec>
struct AttendCodes {
  static const int HEADS = 8, TILE = 64, THREADS = 128, WARPS = 4;
  static const int Q_WORDS = Spec::QUERY / 4 + 4, P_WORDS = TILE / 4 + 4;  // padded: rows begin in different banks
  static const int CHUNKS = Spec::VALUE / 32, MINE = (CHUNKS + WARPS - 1) / WARPS;

  struct Shared {
    float queries[HEADS * Spec::QUERY];
    u32 query_bytes[2 * HEADS * Q_WORDS];  // high ones of the heads, then low ones
    float query_step[HEADS];
    float scores[HEADS * TILE];
    u32 weight_bytes[2 * HEADS * P_WORDS];
    float weight_step[HEADS];
    float peak[HEADS], total[HEADS], fade[HEADS];
  };

  float sums[MINE][8];  // of head lane / 4, dimensions 8 (lane % 4) on of each chunk of 32
  Sight<Spec> sight;

  __device__ __forceinline__ void begin(const float* q, Shared& own) {
    for (int i = threadIdx.x; i < HEADS * Spec::QUERY; i += THREADS) own.queries[i] = i < Spec::SHARE * Spec::QUERY ? q[i] : 0.0f;
    if (threadIdx.x < HEADS) own.peak[threadIdx.x] = LOWEST, own.total[threadIdx.x] = 0.0f;
#pragma unroll
    for (int i = 0; i < MINE * 8; i++) (&sums[0][0])[i] = 0.0f;
    __syncthreads();
    const int lane = threadIdx.x % 32;
    for (int h = threadIdx.x / 32; h < HEADS; h += WARPS) {
      const float* query = own.queries + h * Spec::QUERY;
      float most = 0.0f;
      for (int d = lane; d < Spec::QUERY; d += 32) most = fmaxf(most, fabsf(query[d]));
      const float step = lanes_max(most) / 16256.0f, inverse = step > 1.17549435e-38f ? 1.0f / step : 0.0f;
      if (lane == 0) own.query_step[h] = step;
      for (int w = lane; w < Spec::QUERY / 4; w += 32) {
        put_bytes(query + 4 * w, inverse, own.query_bytes + h * Q_WORDS + w, own.query_bytes + (HEADS + h) * Q_WORDS + w);
      }
    }
    __syncthreads();
  }

  // Four numbers as the high and the low bytes of whole numbers.
  static __device__ __forceinline__ void put_bytes(const float* x, float inverse, u32* high, u32* low) {
    u32 above = 0, below = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int q = __float2int_rn(x[i] * inverse), h = high_byte(q);
      above |= (u32)(h & 255) << (8 * i), below |= (u32)((q - 128 * h) & 255) << (8 * i);
    }
    *high = above, *low = below;
  }

  // A tile of positions that lie in codes. Warps take eight of them each.
  __device__ __forceinline__ void score(i64 begin, int count, Shared& own) {
    typedef typename Spec::Keys Keys;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (int first = threadIdx.x / 32 * 8; first < count; first += 8 * WARPS) {
      const int mine = first + g < count ? first + g : count - 1;
      const i64 place = place_in_ring(begin + mine, sight.capacity, 0);
      int c[4] = {0, 0, 0, 0};
#pragma unroll 4
      for (int w = 0; w < Spec::QUERY / 4; w += 8) {
        const u32* q = own.query_bytes + g * Q_WORDS + w + t;
        const u32 a[4] = {q[0], q[HEADS * Q_WORDS], q[4], q[HEADS * Q_WORDS + 4]};
        const u32 b[2] = {levels_of<typename Keys::Kind>(Keys::quad(sight.k, sight.capacity, place, w + t)),
                          levels_of<typename Keys::Kind>(Keys::quad(sight.k, sight.capacity, place, w + t + 4))};
        mma_16_8_32(c, a, b);
      }
      const float step = own.query_step[g] * Keys::Kind::step();
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int p = first + 2 * t + i;
        if (p >= count) continue;
        const float scale = Keys::scale(sight.k, sight.capacity, place_in_ring(begin + p, sight.capacity, 0), 0);
        own.scores[g * TILE + p] = score_cap<Spec>((128.0f * (float)c[i] + (float)c[2 + i]) * step * scale);
      }
    }
  }

  // The same of positions that are kept as numbers.
  __device__ __forceinline__ void score_near(i64 begin, int count, Shared& own) {
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < count; i += WARPS) {
      float total[HEADS];
#pragma unroll
      for (int h = 0; h < HEADS; h++) total[h] = 0.0f;
      const i64 place = place_in_ring(begin + i, sight.near_capacity, Spec::SINK);
      Scores<typename Spec::NearKeys, 0, Spec::KEY, HEADS, Spec::QUERY>::add(
          sight.near_k, sight.near_capacity, place, own.queries, lane, total);
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        const float s = lanes_sum<32>(total[h]);
        if (lane == h) own.scores[h * TILE + i] = score_cap<Spec>(s);
      }
    }
  }

  // Scores become weights relative to the new maximum: of codes times their scales, in bytes; what is beyond the tile is
  // zero. A warp for every fourth head, two positions to a lane.
  __device__ __forceinline__ void soften(i64 begin, int count, bool near, Shared& own) {
    typedef typename Spec::Values Values;
    const int lane = threadIdx.x % 32;
    for (int h = threadIdx.x / 32; h < HEADS; h += WARPS) {
      float* scores = own.scores + h * TILE;
      float s[2], e[2], peak = LOWEST;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        s[i] = lane + 32 * i < count ? scores[lane + 32 * i] : LOWEST;
        peak = fmaxf(peak, s[i]);
      }
      const float before = own.peak[h];
      peak = fmaxf(before, lanes_max(peak));
      float most = 0.0f, total = 0.0f;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int p = lane + 32 * i;
        e[i] = p < count ? expf(s[i] - peak) : 0.0f;
        total += e[i];
        if (!near && p < count) {
          e[i] *= Values::scale(sight.v, sight.capacity, place_in_ring(begin + p, sight.capacity, 0), 0);
        }
        most = fmaxf(most, e[i]);
        scores[p] = e[i];
      }
      total = lanes_sum<32>(total);
      const float step = lanes_max(most) / 16256.0f, inverse = step > 1.17549435e-38f ? 1.0f / step : 0.0f;
      __syncwarp();
      if (!near && lane < TILE / 4) {
        put_bytes(scores + 4 * lane, inverse, own.weight_bytes + h * P_WORDS + lane, own.weight_bytes + (HEADS + h) * P_WORDS + lane);
      }
      if (lane == 0) {
        const float fade = expf(before - peak);
        own.weight_step[h] = step, own.fade[h] = fade, own.peak[h] = peak;
        own.total[h] = own.total[h] * fade + total;
      }
    }
  }

  // Sums of V, a warp for every fourth 32 dimensions.
  __device__ __forceinline__ void accumulate(i64 begin, int count, Shared& own) {
    typedef typename Spec::Values Values;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const float step = own.weight_step[g] * Values::Kind::step(), fade = own.fade[g];
#pragma unroll
    for (int m = 0; m < MINE; m++) {
      const int chunk = threadIdx.x / 32 + m * WARPS;
      if (chunk >= CHUNKS) continue;
      int c[4][4];
#pragma unroll
      for (int i = 0; i < 16; i++) (&c[0][0])[i] = 0;
      for (int p = 0; p < count; p += 32) {
        u32 b[2][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const int position = p + 16 * half + 4 * t + i;
            // Beyond the tile weights are zero, whatever is read.
            const i64 place = place_in_ring(begin + (position < count ? position : count - 1), sight.capacity, 0);
            b[half][i] = levels_of<typename Values::Kind>(Values::quad(sight.v, sight.capacity, place, chunk * 8 + g));
          }
          turn_over(b[half]);
        }
        const u32* w = own.weight_bytes + g * P_WORDS + p / 4 + t;
        const u32 a[4] = {w[0], w[HEADS * P_WORDS], w[4], w[HEADS * P_WORDS + 4]};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const u32 of_dimension[2] = {b[0][j], b[1][j]};
          mma_16_8_32(c[j], a, of_dimension);
        }
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float sum = (128.0f * (float)c[j][i] + (float)c[j][2 + i]) * step;
          sums[m][4 * i + j] = fmaf(sums[m][4 * i + j], fade, sum);
        }
      }
    }
  }

  __device__ __forceinline__ void accumulate_near(i64 begin, int count, Shared& own) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < MINE; m++) {
      const int chunk = threadIdx.x / 32 + m * WARPS;
      if (chunk >= CHUNKS) continue;
#pragma unroll
      for (int i = 0; i < 8; i++) sums[m][i] *= own.fade[g];
      for (int p = 0; p < count; p++) {
        const i64 place = place_in_ring(begin + p, sight.near_capacity, Spec::SINK);
        const float weight = own.scores[g * TILE + p];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float4 v = Spec::NearValues::four(sight.near_v, sight.near_capacity, place, chunk * 32 + 8 * t + 4 * i);
          sums[m][4 * i] = fmaf(weight, v.x, sums[m][4 * i]);
          sums[m][4 * i + 1] = fmaf(weight, v.y, sums[m][4 * i + 1]);
          sums[m][4 * i + 2] = fmaf(weight, v.z, sums[m][4 * i + 2]);
          sums[m][4 * i + 3] = fmaf(weight, v.w, sums[m][4 * i + 3]);
        }
      }
    }
  }

  // Positions begin to stop, all in codes or all near.
  __device__ __forceinline__ void stretch(i64 begin, i64 stop, bool near, Shared& own) {
    for (; begin < stop; begin += TILE) {
      const int count = stop - begin < TILE ? (int)(stop - begin) : TILE;
      if (near) score_near(begin, count, own);
      else score(begin, count, own);
      __syncthreads();
      soften(begin, count, near, own);
      __syncthreads();
      if (near) accumulate_near(begin, count, own);
      else accumulate(begin, count, own);
      __syncthreads();
    }
  }
};

template <class Spec>
__device__ __forceinline__ void attend_codes_part(
    const float* q, const u8* k, const u8* v, const u8* near_k, const u8* near_v, const i64* capacity,
    const i64* near_capacity, const int* positions, const int* slots, float* out, float* scratch,
    typename AttendCodes<Spec>::Shared& own) {
  typedef AttendCodes<Spec> Codes;
  const int part = blockIdx.x, group = blockIdx.y, row = blockIdx.z;
  Codes codes;
  Sight<Spec>& sight = codes.sight;
  see(sight, k, v, near_k, near_v, capacity, near_capacity, positions[row], (i64)slots[row] * Spec::GROUPS + group);
  codes.begin(q + (i64)row * Spec::Q_STRIDE + group * Spec::SHARE * Spec::QUERY, own);
  i64 low, stop;
  sight.part(part, low, stop);
  const i64 far = Spec::NEAR ? Spec::SINK : 0, recent = Spec::NEAR ? sight.last - Spec::RECENT + 1 : sight.last + 1;
  const i64 first = low > far ? low : far, end = stop < recent ? stop : recent;
  codes.stretch(low, stop < far ? stop : far, true, own);
  codes.stretch(first, end, false, own);
  const i64 again = first > recent ? first : recent;
  codes.stretch(again, stop, true, own);
  const int lane = threadIdx.x % 32, h = lane / 4;
  if (h >= Spec::SHARE) return;
  float* to = Spec::PARTS == 1
      ? out + ((i64)row * Spec::GROUPS * Spec::SHARE + group * Spec::SHARE + h) * Spec::VALUE
      : kept_of<Spec>(scratch, row, group, part, h);
  const float factor = Spec::PARTS == 1 ? 1.0f / own.total[h] : 1.0f;
#pragma unroll
  for (int m = 0; m < Codes::MINE; m++) {
    const int chunk = threadIdx.x / 32 + m * Codes::WARPS;
    if (chunk >= Codes::CHUNKS) continue;
#pragma unroll
    for (int i = 0; i < 8; i++) to[chunk * 32 + lane % 4 * 8 + i] = codes.sums[m][i] * factor;
  }
  if (Spec::PARTS > 1 && threadIdx.x < 32 && lane % 4 == 0) to[Spec::VALUE] = own.peak[h], to[Spec::VALUE + 1] = own.total[h];
}
