// Attention of one row and one group of query heads over a part of what the row sees, with an online softmax.
//
// A block takes a tile of positions at a time: warps make the scores of whole positions, then each thread adds its
// dimensions of V to the sums of all heads. Parts are put together by `attend_merge` (flash-decoding, Dao et al. 2023).

// `Spec` brings: SHARE query heads of a group, GROUPS, KEY and VALUE sizes, SHARED (dimensions of K that are not those
// of V; 0 where K is whole), WINDOW (0: none), SINK, RECENT, NEAR, CAP, SCALE, Q_STRIDE, TILE, THREADS, PARTS, and the
// planes Keys, Values, NearKeys, NearValues.
template <class Spec>
struct AttendShared {
  float queries[Spec::SHARE * Spec::QUERY];
  float scores[Spec::SHARE][Spec::TILE];
  float peak[Spec::SHARE], total[Spec::SHARE], fade[Spec::SHARE];
};

// What is kept of a part: for each head the weighted sum [VALUE], then the largest score and the sum of weights.
template <class Spec>
__device__ __forceinline__ float* kept_of(float* scratch, int row, int group, int part, int head) {
  const i64 index = ((i64)(row * Spec::GROUPS + group) * Spec::PARTS + part) * Spec::SHARE + head;
  return scratch + index * (Spec::VALUE + 2);
}

template <class Spec>
__device__ __forceinline__ float score_cap(float s) {
  s *= Spec::scale();
  return Spec::CAPPED ? Spec::cap() * tanhf(s / Spec::cap()) : s;
}

template <class Spec>
struct Sight {
  i64 first, last, capacity, near_capacity;
  const u8 *k, *v, *near_k, *near_v;

  __device__ __forceinline__ bool near(i64 position) const {
    return Spec::NEAR && (position < Spec::SINK || position > last - Spec::RECENT);
  }

  // The positions of a part: whole tiles, as equal as can be.
  __device__ __forceinline__ void part(int index, i64& low, i64& stop) const {
    const i64 tiles = (last - first) / Spec::TILE + 1, each = (tiles + Spec::PARTS - 1) / Spec::PARTS;
    low = first + index * each * Spec::TILE;
    const i64 end = low + each * Spec::TILE;
    stop = end <= last ? end : last + 1;
  }
};

// What a row at a position sees, in ring `ring` of the planes.
template <class Spec>
__device__ __forceinline__ void see(
    Sight<Spec>& sight, const u8* k, const u8* v, const u8* near_k, const u8* near_v, const i64* capacity,
    const i64* near_capacity, i64 position, i64 ring) {
  sight.last = position;
  sight.first = Spec::WINDOW && position >= Spec::WINDOW ? position - Spec::WINDOW + 1 : 0;
  sight.capacity = *capacity;
  sight.near_capacity = Spec::NEAR ? *near_capacity : 1;
  sight.k = k + ring * Spec::Keys::bytes(sight.capacity);
  sight.v = v + ring * Spec::Values::bytes(sight.capacity);
  sight.near_k = near_k + ring * Spec::NearKeys::bytes(sight.near_capacity);
  sight.near_v = near_v + ring * Spec::NearValues::bytes(sight.near_capacity);
}

template <class Spec>
__device__ __forceinline__ void attend_scores(const Sight<Spec>& sight, AttendShared<Spec>& own, i64 begin, int count) {
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32; i < count; i += Spec::THREADS / 32) {
    float total[Spec::SHARE];
#pragma unroll
    for (int h = 0; h < Spec::SHARE; h++) total[h] = 0.0f;
    const i64 position = begin + i;
    if (sight.near(position)) {
      const i64 place = place_in_ring(position, sight.near_capacity, Spec::SINK);
      Scores<typename Spec::NearKeys, 0, Spec::KEY, Spec::SHARE, Spec::QUERY>::add(
          sight.near_k, sight.near_capacity, place, own.queries, lane, total);
      if (Spec::SHARED) {
        Scores<typename Spec::NearValues, Spec::KEY, Spec::QUERY, Spec::SHARE, Spec::QUERY>::add(
            sight.near_v, sight.near_capacity, place, own.queries, lane, total);
      }
    } else {
      const i64 place = place_in_ring(position, sight.capacity, 0);
      Scores<typename Spec::Keys, 0, Spec::KEY, Spec::SHARE, Spec::QUERY>::add(
          sight.k, sight.capacity, place, own.queries, lane, total);
      if (Spec::SHARED) {
        Scores<typename Spec::Values, Spec::KEY, Spec::QUERY, Spec::SHARE, Spec::QUERY>::add(
            sight.v, sight.capacity, place, own.queries, lane, total);
      }
    }
#pragma unroll
    for (int h = 0; h < Spec::SHARE; h++) {
      const float s = lanes_sum<32>(total[h]);
      if (lane == h % 32) own.scores[h][i] = score_cap<Spec>(s);
    }
  }
}

// Scores become exponentials relative to the new maximum: a warp for each head.
template <class Spec>
__device__ __forceinline__ void attend_soften(AttendShared<Spec>& own, int count) {
  const int lane = threadIdx.x % 32;
  for (int h = threadIdx.x / 32; h < Spec::SHARE; h += Spec::THREADS / 32) {
    float peak = LOWEST, total = 0.0f;
    for (int i = lane; i < count; i += 32) peak = fmaxf(peak, own.scores[h][i]);
    const float before = own.peak[h];
    peak = fmaxf(before, lanes_max(peak));
    for (int i = lane; i < count; i += 32) {
      const float e = expf(own.scores[h][i] - peak);
      own.scores[h][i] = e;
      total += e;
    }
    total = lanes_sum<32>(total);
    __syncwarp();
    if (lane == 0) {
      const float fade = expf(before - peak);
      own.fade[h] = fade;
      own.total[h] = own.total[h] * fade + total;
      own.peak[h] = peak;
    }
  }
}

template <class Spec>
__device__ __forceinline__ void attend_part(
    const float* q, const u8* k, const u8* v, const u8* near_k, const u8* near_v, const i64* capacity,
    const i64* near_capacity, const int* positions, const int* slots, float* out, float* scratch,
    AttendShared<Spec>& own) {
  const int part = blockIdx.x, group = blockIdx.y, row = blockIdx.z;
  const int EACH = (Spec::VALUE + Spec::THREADS - 1) / Spec::THREADS;
  Sight<Spec> sight;
  see(sight, k, v, near_k, near_v, capacity, near_capacity, positions[row], (i64)slots[row] * Spec::GROUPS + group);
  for (int i = threadIdx.x; i < Spec::SHARE * Spec::QUERY; i += Spec::THREADS) {
    own.queries[i] = q[(i64)row * Spec::Q_STRIDE + group * Spec::SHARE * Spec::QUERY + i];
  }
  if (threadIdx.x < Spec::SHARE) own.peak[threadIdx.x] = LOWEST, own.total[threadIdx.x] = 0.0f;
  float sums[Spec::SHARE][EACH];
#pragma unroll
  for (int h = 0; h < Spec::SHARE; h++) {
#pragma unroll
    for (int j = 0; j < EACH; j++) sums[h][j] = 0.0f;
  }
  i64 low, stop;
  sight.part(part, low, stop);
  __syncthreads();
  for (i64 begin = low; begin < stop; begin += Spec::TILE) {
    const int count = stop - begin < Spec::TILE ? (int)(stop - begin) : Spec::TILE;
    attend_scores(sight, own, begin, count);
    __syncthreads();
    attend_soften<Spec>(own, count);
    __syncthreads();
#pragma unroll
    for (int h = 0; h < Spec::SHARE; h++) {
#pragma unroll
      for (int j = 0; j < EACH; j++) sums[h][j] *= own.fade[h];
    }
#pragma unroll 1
    for (int i = 0; i < count; i++) {
      const i64 position = begin + i;
      const bool near = sight.near(position);
      const i64 place = near ? place_in_ring(position, sight.near_capacity, Spec::SINK)
                             : place_in_ring(position, sight.capacity, 0);
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        const int d = threadIdx.x + j * Spec::THREADS;
        if (d >= Spec::VALUE) continue;
        const float value = near ? Spec::NearValues::value(sight.near_v, sight.near_capacity, place, d)
                                 : Spec::Values::value(sight.v, sight.capacity, place, d);
#pragma unroll
        for (int h = 0; h < Spec::SHARE; h++) sums[h][j] = fmaf(own.scores[h][i], value, sums[h][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int h = 0; h < Spec::SHARE; h++) {
    float* to = Spec::PARTS == 1
        ? out + ((i64)row * Spec::GROUPS * Spec::SHARE + group * Spec::SHARE + h) * Spec::VALUE
        : kept_of<Spec>(scratch, row, group, part, h);
    const float factor = Spec::PARTS == 1 ? 1.0f / own.total[h] : 1.0f;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int d = threadIdx.x + j * Spec::THREADS;
      if (d < Spec::VALUE) to[d] = sums[h][j] * factor;
    }
    if (Spec::PARTS > 1 && threadIdx.x == 0) to[Spec::VALUE] = own.peak[h], to[Spec::VALUE + 1] = own.total[h];
  }
}

// One head of one row: its parts put together.
template <class Spec>
__device__ __forceinline__ void attend_merge(const float* scratch, float* out) {
  const int head = blockIdx.x, row = blockIdx.z, group = head / Spec::SHARE, of = head % Spec::SHARE;
  float* kept = (float*)scratch;
  float peak = LOWEST, total = 0.0f;
  for (int p = 0; p < Spec::PARTS; p++) peak = fmaxf(peak, kept_of<Spec>(kept, row, group, p, of)[Spec::VALUE]);
  for (int p = 0; p < Spec::PARTS; p++) {
    const float* part = kept_of<Spec>(kept, row, group, p, of);
    total += part[Spec::VALUE + 1] * expf(part[Spec::VALUE] - peak);
  }
  for (int d = threadIdx.x; d < Spec::VALUE; d += blockDim.x) {
    float sum = 0.0f;
    for (int p = 0; p < Spec::PARTS; p++) {
      const float* part = kept_of<Spec>(kept, row, group, p, of);
      sum = fmaf(part[d], expf(part[Spec::VALUE] - peak), sum);
    }
    out[((i64)row * Spec::GROUPS * Spec::SHARE + head) * Spec::VALUE + d] = sum / total;
  }
}
