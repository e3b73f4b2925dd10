// Scalar products of stored rows with a row of activations. LANES lanes of a warp share a product: each takes slices of
// 16 bytes of the weight, so that neighbours read neighbouring bytes. Each lane's share of the sum is what comes back.

// Activations in floats; rows begin at multiples of ALIGN of them.
template <int ALIGN>
struct Floats {
  const float* row;

  __device__ __forceinline__ float4 four(int column) const {
    if (ALIGN % 4 == 0) return *(const float4*)(row + column);
    return make_float4(row[column], row[column + 1], row[column + 2], row[column + 3]);
  }

  // The largest value of every second four columns: both sides together see all.
  template <int COLUMNS>
  __device__ __forceinline__ float most(int side) const {
    float found = 0.0f;
    for (int i = 4 * side; i < COLUMNS; i += 8) {
      const float4 v = four(i);
      found = fmaxf(fmaxf(found, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
    }
    return found;
  }

  // Sixteen columns times a factor, as f16, and what that leaves of them.
  __device__ __forceinline__ void halves(int column, float factor, u32 out[8], u32 rest[8]) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float4 v = four(column + 4 * i);
      split_halves(v.x * factor, v.y * factor, out[2 * i], rest[2 * i]);
      split_halves(v.z * factor, v.w * factor, out[2 * i + 1], rest[2 * i + 1]);
    }
  }

  // The sum of q x over sixteen columns, q four to a word, and in `total` that of x.
  template <bool SIGNED>
  __device__ __forceinline__ float dot(const u32 q[4], int column, float& total) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < 4; w++) {
      const float4 v = four(column + 4 * w);
      const float each[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const u32 byte = q[w] >> (8 * i) & 255u;
        sum = fmaf(SIGNED ? (float)(signed char)byte : (float)byte, each[i], sum);
        total += each[i];
      }
    }
    return sum;
  }
};

// Activations as integers, of which BLOCK share a scale: in 8 bits, or in 16 as 128 times one byte plus another. A row
// is [low bytes][high bytes][f32 scales][i32 sums of each sixteen], up to a multiple of 16 bytes.
template <int COLUMNS, int BITS, int BLOCK>
struct Integers {
  const u8* row;
  static const int BYTES = BITS / 8;
  static const int ROW_BYTES = (COLUMNS * BYTES + 4 * (COLUMNS / BLOCK + COLUMNS / 16) + 15) / 16 * 16;

  template <bool SIGNED>
  __device__ __forceinline__ float dot(const u32 q[4], int column, float& total) const {
    const uint4 low = *(const uint4*)(row + column);
    int sum = 0;
    sum = multiply<SIGNED>(q, low, 0);
    if (BITS == 16) sum += 128 * multiply<SIGNED>(q, *(const uint4*)(row + COLUMNS + column), 0);
    const float scale = this->scale(column);
    total = scale * (float)this->total<16>(column);
    return scale * (float)sum;
  }

  // What the integer at a column is multiplied with.
  __device__ __forceinline__ float scale(int column) const {
    return ((const float*)(row + COLUMNS * BYTES))[column / BLOCK];
  }

  // The sum of RUN integers from a column on.
  template <int RUN>
  __device__ __forceinline__ int total(int column) const {
    const int* sums = (const int*)(row + COLUMNS * BYTES) + COLUMNS / BLOCK + column / 16;
    return RUN == 32 ? sums[0] + sums[1] : sums[0];
  }

  // Weights below 128 are the same with and without a sign, and those of formats with 8 bits have one.
  template <bool SIGNED>
  static __device__ __forceinline__ int multiply(const u32 q[4], uint4 x, int sum) {
    sum = __dp4a((int)q[0], (int)x.x, sum);
    sum = __dp4a((int)q[1], (int)x.y, sum);
    sum = __dp4a((int)q[2], (int)x.z, sum);
    return __dp4a((int)q[3], (int)x.w, sum);
  }
};

template <class Fmt, int COLUMNS, int LANES, class X>
struct Product {
  static __device__ __forceinline__ float of(const u8* row, const X& x, int lane) {
    typedef Blocks<Fmt> B;
    float sum = 0.0f;
    for (int s = lane; s < COLUMNS / Fmt::elements * B::SLICES; s += LANES) {
      const int slice = s % B::SLICES, start = s / B::SLICES * Fmt::elements;
      const u8* block = row + s / B::SLICES * Fmt::bytes;
      u32 low[4], q[4];
      B::load(block, slice, low);
#pragma unroll
      for (int part = 0; part < B::PARTS; part++) {
        const int first = B::first(slice, part);
        B::integers(block, slice, part, low, q);
        float total = 0.0f;
        float dot = x.template dot<Fmt::is_signed || Fmt::has_table>(q, start + first, total);
        if (Fmt::bias != 0) dot = fmaf((float)-Fmt::bias, total, dot);
        sum = fmaf(B::scale(block, first), dot, sum);
        if (Fmt::has_offset) sum = fmaf(B::offset(block, first), total, sum);
      }
    }
    return sum;
  }
};

// Rows of plain numbers, four at a time where they divide.
template <class Number, int COLUMNS, int LANES, class X>
struct PlainProduct {
  static __device__ __forceinline__ float of(const u8* row, const X& x, int lane) {
    const typename Number::stored* w = (const typename Number::stored*)row;
    float sum = 0.0f;
    if (COLUMNS % 4 == 0) {
      for (int i = 4 * lane; i < COLUMNS; i += 4 * LANES) {
        const float4 v = x.four(i);
        typename Number::stored four[4];
        if (sizeof(four) == 16) {
          *(uint4*)four = *(const uint4*)(w + i);
        } else {
          *(uint2*)four = *(const uint2*)(w + i);
        }
        sum = fmaf(Number::get(four), v.x, sum);
        sum = fmaf(Number::get(four + 1), v.y, sum);
        sum = fmaf(Number::get(four + 2), v.z, sum);
        sum = fmaf(Number::get(four + 3), v.w, sum);
      }
    } else {
      for (int i = lane; i < COLUMNS; i += LANES) sum = fmaf(Number::get(w + i), x.row[i], sum);
    }
    return sum;
  }
};
template <int COLUMNS, int LANES, class X>
struct Product<f32, COLUMNS, LANES, X> : PlainProduct<f32, COLUMNS, LANES, X> {};
template <int COLUMNS, int LANES, class X>
struct Product<f16, COLUMNS, LANES, X> : PlainProduct<f16, COLUMNS, LANES, X> {};
template <int COLUMNS, int LANES, class X>
struct Product<bf16, COLUMNS, LANES, X> : PlainProduct<bf16, COLUMNS, LANES, X> {};
