// Stored block formats. `Fmt` is a structure of constants that is written from the table in `backends/formats.py`:
// an element is scale * q + offset, q a small integer out of one or two bit fields.
//
// Bytes of the low field are taken 16 at a time, a *slice*: of each, a *part* is what lies at one bit place, which are
// 16 elements that follow one another and share a scale.

// The `index`-th integer of a field of BITS that begins at AT, of which RUN bytes belong together.
template <int AT, int BITS, int RUN>
__device__ __forceinline__ int field(const u8* block, int index) {
  const int many = RUN * (8 / BITS), rest = index % many;
  return block[AT + index / many * RUN + rest % RUN] >> (BITS * (rest / RUN)) & ((1 << BITS) - 1);
}

// Six bits each: the first four are the low bits of four bytes, the others lie in nibbles and on top of those bytes.
__device__ __forceinline__ int six_bits(const u8* s, int index, bool minimum) {
  const int i = index & 3, mine = s[i + (minimum ? 4 : 0)];
  if (index < 4) return mine & 63;
  const int both = s[8 + i];
  return (minimum ? both >> 4 : both & 15) | (mine >> 2 & 48);
}

// Four bytes below 16, each looked up in a table of sixteen.
__device__ __forceinline__ u32 lookup_16(u32 index, u32 t0, u32 t1, u32 t2, u32 t3) {
  // A selector takes four nibbles, and picks from eight bytes; the fourth bit chooses the half.
  const u32 low = index & 0x07070707u, packed = (low | low >> 4) & 0x00ff00ffu;
  const u32 selector = (packed | packed >> 8) & 0xffffu;
  const u32 below = __byte_perm(t0, t1, selector), above = __byte_perm(t2, t3, selector);
  const u32 mask = (index >> 3 & 0x01010101u) * 0xffu;
  return (below & ~mask) | (above & mask);
}

template <class Fmt>
struct Blocks {
  static const int PARTS = Fmt::whole ? 1 : 8 / Fmt::low_bits;
  static const int PART = 16;
  static const int SLICES = Fmt::elements / (PART * PARTS);

  // The first element of a part.
  static __device__ __forceinline__ int first(int slice, int part) {
    const int byte = 16 * slice;
    return byte / Fmt::low_run * (Fmt::low_run * PARTS) + part * Fmt::low_run + byte % Fmt::low_run;
  }

  static __device__ __forceinline__ void load(const u8* block, int slice, u32 low[4]) {
    load_line<Fmt::low_align>(block + Fmt::low_at + 16 * slice, low);
  }

  // The sixteen integers of a part, four to a word, before the bias.
  static __device__ __forceinline__ void integers(const u8* block, int slice, int part, const u32 low[4], u32 q[4]) {
    const int begin = first(slice, part);
#pragma unroll
    for (int w = 0; w < 4; w++) {
      u32 word = Fmt::low_bits == 8 ? low[w] : low[w] >> (part * Fmt::low_bits) & ((1 << Fmt::low_bits) - 1) * 0x01010101u;
      if (Fmt::high_bits > 0) word |= high(block, begin + 4 * w) << Fmt::low_bits;
      if (Fmt::has_table) word = lookup_16(word, Fmt::table(0), Fmt::table(1), Fmt::table(2), Fmt::table(3));
      q[w] = word;
    }
  }

  // The high bits of four elements that follow one another, each in a byte.
  static __device__ __forceinline__ u32 high(const u8* block, int element) {
    if (Fmt::high_run == 1) {  // side by side in one byte (of single bits)
      const u32 bits = block[Fmt::high_at + element / 8] >> (element % 8) & 15u;
      return bits * 0x00204081u & 0x01010101u;
    }
    const int many = Fmt::high_run * (Fmt::high_bits ? 8 / Fmt::high_bits : 1), rest = element % many;
    const u8* at = block + Fmt::high_at + element / many * Fmt::high_run + rest % Fmt::high_run;
    const u32 word = load_word<Fmt::high_align>(at);
    return word >> (Fmt::high_bits * (rest / Fmt::high_run)) & ((1 << Fmt::high_bits) - 1) * 0x01010101u;
  }

  static __device__ __forceinline__ float number(const u8* block, int at) {
    if (Fmt::d_type == 2) {  // a power of two, halved: below 2 it is subnormal
      const u32 e = block[at];
      return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    }
    return f16_value(load_half<Fmt::align>(block + at));
  }

  // The scale of an element's group; its offset where the format has such.
  static __device__ __forceinline__ float scale(const u8* block, int element) {
    const float d = number(block, Fmt::d_at);
    const int group = element / Fmt::group;
    if (Fmt::subs == 0) return d;
    if (Fmt::subs == 6) return d * (float)six_bits(block + Fmt::sub_at, group, false);
    if (Fmt::subs == 8) return d * (float)(signed char)block[Fmt::sub_at + group];
    return d * (float)sub(block, group);
  }

  static __device__ __forceinline__ float offset(const u8* block, int element) {
    if (!Fmt::has_offset) return 0.0f;
    const float m = number(block, Fmt::m_at);
    const int group = element / Fmt::group;
    if (Fmt::subs == 0) return m;
    if (Fmt::subs == 6) return -m * (float)six_bits(block + Fmt::sub_at, group, true);
    return -m * (float)sub(block, Fmt::elements / Fmt::group + group);
  }

  static __device__ __forceinline__ int sub(const u8* block, int index) {
    int value = field<Fmt::sub_at, Fmt::sub_bits, Fmt::sub_run>(block, index);
    if (Fmt::sub_high_bits > 0) {
      value |= field<Fmt::sub_high_at, Fmt::sub_high_bits ? Fmt::sub_high_bits : 1, Fmt::sub_high_run>(block, index) << Fmt::sub_bits;
    }
    return value - Fmt::sub_bias;
  }

  // One element by itself.
  static __device__ __forceinline__ float value(const u8* block, int element) {
    int q = field<Fmt::low_at, Fmt::low_bits, Fmt::low_run>(block, element);
    if (Fmt::high_bits > 0) {
      q |= field<Fmt::high_at, Fmt::high_bits ? Fmt::high_bits : 1, Fmt::high_run>(block, element) << Fmt::low_bits;
    }
    if (Fmt::has_table) q = (signed char)(Fmt::table(q / 4) >> (8 * (q % 4)));
    if (Fmt::is_signed) q = (signed char)q;
    return __fmaf_rn(scale(block, element), (float)(q - Fmt::bias), offset(block, element));
  }
};

// Element `column` of a row of blocks.
template <class Fmt>
__device__ __forceinline__ float element(const u8* row, int column) {
  return Blocks<Fmt>::value(row + column / Fmt::elements * Fmt::bytes, column % Fmt::elements);
}

// Rows of plain numbers.
template <>
__device__ __forceinline__ float element<f32>(const u8* row, int column) { return ((const float*)row)[column]; }
template <>
__device__ __forceinline__ float element<f16>(const u8* row, int column) { return f16_value(((const u16*)row)[column]); }
template <>
__device__ __forceinline__ float element<bf16>(const u8* row, int column) { return bf16_value(((const u16*)row)[column]); }
