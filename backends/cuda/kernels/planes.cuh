// KV cache planes: [sequence][head][capacity] positions, of numbers or of codes.
//
// A plane of codes keeps, for each sequence and head, its bit planes one after another and then the scales, f16. Every
// word of a bit plane of b bits has 32 / b codes that follow one another: four of them in each b bits of its four bytes.

template <class Number, int SIZE>
struct PlainPlane {
  typedef typename Number::stored Stored;
  static const bool WIDE = sizeof(Stored) == 4;  // whether values have more bits than f16
  static const int AT_ONCE = 2;                  // loads that tiles have under way: registers limit them

  static __device__ __forceinline__ i64 bytes(i64 capacity) { return capacity * SIZE * sizeof(Stored); }

  static __device__ __forceinline__ float value(const u8* ring, i64 capacity, i64 place, int d) {
    return Number::get((const Stored*)ring + place * SIZE + d);
  }

  // Dimensions d to d + 3, of which those beyond the head are zeros.
  static __device__ __forceinline__ float4 four(const u8* ring, i64 capacity, i64 place, int d) {
    const Stored* at = (const Stored*)ring + place * SIZE + d;
    if (SIZE % 4 == 0) {
      Stored loaded[4];
      if (sizeof(loaded) == 16) {
        *(uint4*)loaded = *(const uint4*)at;
      } else {
        *(uint2*)loaded = *(const uint2*)at;
      }
      return make_float4(Number::get(loaded), Number::get(loaded + 1), Number::get(loaded + 2), Number::get(loaded + 3));
    }
    float found[4];
#pragma unroll
    for (int i = 0; i < 4; i++) found[i] = d + i < SIZE ? Number::get(at + i) : 0.0f;
    return make_float4(found[0], found[1], found[2], found[3]);
  }
};

// `Codec` brings BITS, the WIDTH of a block that shares a scale, and what codes stand for.
template <class Codec, int SIZE>
struct CodedPlane {
  typedef Codec Kind;
  static const bool WIDE = false;  // rounding to f16 is far below what codes lose
  static const int AT_ONCE = 1;
  static const int BITS = Codec::BITS, WIDTH = Codec::WIDTH, SCALES = SIZE / WIDTH;
  // The first bit plane has the high bits: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2.
  static const int HIGH = BITS == 3 ? 2 : BITS == 5 || BITS == 6 ? 4 : BITS, LOW = BITS - HIGH;
  static const int HIGH_WORDS = (SIZE * HIGH + 31) / 32, LOW_WORDS = (SIZE * LOW + 31) / 32;

  static __device__ __forceinline__ i64 bytes(i64 capacity) {
    return capacity * (4 * (HIGH_WORDS + LOW_WORDS) + 2 * SCALES);
  }

  static __device__ __forceinline__ const u32* low_plane(const u8* ring, i64 capacity) {
    return (const u32*)ring + capacity * HIGH_WORDS;
  }

  static __device__ __forceinline__ const u16* scales(const u8* ring, i64 capacity) {
    return (const u16*)(ring + 4 * capacity * (HIGH_WORDS + LOW_WORDS));
  }

  // Codes 4 i to 4 i + 3 of a position, in the bytes of a word.
  static __device__ __forceinline__ u32 quad(const u8* ring, i64 capacity, i64 place, int i) {
    u32 codes = of_plane<HIGH>((const u32*)ring + place * HIGH_WORDS, i) << LOW;
    if (LOW > 0) codes |= of_plane<LOW ? LOW : 1>(low_plane(ring, capacity) + place * LOW_WORDS, i);
    return codes;
  }

  template <int WIDE>
  static __device__ __forceinline__ u32 of_plane(const u32* row, int i) {
    return row[i * WIDE / 8] >> (i * WIDE % 8) & ((1u << WIDE) - 1) * 0x01010101u;
  }

  static __device__ __forceinline__ float scale(const u8* ring, i64 capacity, i64 place, int d) {
    return f16_value(scales(ring, capacity)[place * SCALES + d / WIDTH]);
  }

  static __device__ __forceinline__ float value(const u8* ring, i64 capacity, i64 place, int d) {
    const u32 codes = quad(ring, capacity, place, d / 4);
    return Codec::level(codes >> (d % 4 * 8) & 255u) * scale(ring, capacity, place, d);
  }

  static __device__ __forceinline__ float4 four(const u8* ring, i64 capacity, i64 place, int d) {
    const u32 codes = quad(ring, capacity, place, d / 4);
    const float s = scale(ring, capacity, place, d);
    return make_float4(Codec::level(codes & 255u) * s, Codec::level(codes >> 8 & 255u) * s,
                       Codec::level(codes >> 16 & 255u) * s, Codec::level(codes >> 24) * s);
  }
};

// Scalar products of positions with the queries of SHARE heads, from dimension BEGIN to END of PLANE: `total` grows by
// each lane's part of them. Queries lie in shared memory, STRIDE floats apart.
template <class Plane, int BEGIN, int END, int SHARE, int STRIDE>
struct Scores {
  static __device__ __forceinline__ void add(
      const u8* ring, i64 capacity, i64 place, const float* queries, int lane, float total[SHARE]) {
#pragma unroll 1  // more would take more registers than there are beside the sums of V
    for (int d = BEGIN + lane; d < END; d += 32) {
      const float value = Plane::value(ring, capacity, place, d);
#pragma unroll
      for (int h = 0; h < SHARE; h++) total[h] = fmaf(queries[h * STRIDE + d], value, total[h]);
    }
  }
};
