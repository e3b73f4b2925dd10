// Integer intrinsics: bit counts, byte permutation, dot products of bytes, SIMD within a word, reinterpretation.
#pragma once

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
inline unsigned long long __brevll(unsigned long long x) {
  return (unsigned long long)__brev(unsigned(x)) << 32 | __brev(unsigned(x >> 32));
}

// Each nibble of the selector names one of the eight bytes of b:a; its high bit spreads that byte's sign instead.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned nibble = selector >> 4 * i & 15;
    unsigned byte = unsigned(bytes >> 8 * (nibble & 7)) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}

// Dot product of four bytes, signed or not by type, added to c; sums wrap.
template <class A, class B>
inline unsigned emulated_dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; i++) c += unsigned(int(A(a >> 8 * i)) * int(B(b >> 8 * i)));
  return c;
}
inline int __dp4a(int a, int b, int c) {
  return int(emulated_dp4a<signed char, signed char>(unsigned(a), unsigned(b), unsigned(c)));
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  return emulated_dp4a<unsigned char, unsigned char>(a, b, c);
}
inline int __dp4a(char4 a, char4 b, int c) { return c + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
inline unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) {
  return c + unsigned(a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w);
}
// Two halves of a by the low (or high) two bytes of b.
inline int __dp2a_lo(int a, int b, int c) { return c + short(a) * (signed char)b + (a >> 16) * (signed char)(b >> 8); }
inline int __dp2a_hi(int a, int b, int c) { return __dp2a_lo(a, b >> 16, c); }

inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mul24(int a, int b) { return int(unsigned(a << 8 >> 8) * unsigned(b << 8 >> 8)); }
inline unsigned __sad(int a, int b, unsigned c) { return c + unsigned(a < b ? b - a : a - b); }

// Four bytes of a word at a time.
#define BRIOLETTE_BYTES(name, T, expression)                                                                           \
  inline unsigned name(unsigned a, unsigned b) {                                                                       \
    unsigned result = 0;                                                                                               \
    for (int i = 0; i < 4; i++) {                                                                                      \
      const int x = (T)(a >> 8 * i), y = (T)(b >> 8 * i);                                                              \
      result |= unsigned((unsigned char)(expression)) << 8 * i;                                                        \
    }                                                                                                                  \
    return result;                                                                                                     \
  }
inline int emulated_saturated(int x) { return x < -128 ? -128 : x > 127 ? 127 : x; }
BRIOLETTE_BYTES(__vadd4, unsigned char, x + y)
BRIOLETTE_BYTES(__vsub4, unsigned char, x - y)
BRIOLETTE_BYTES(__vaddss4, signed char, emulated_saturated(x + y))
BRIOLETTE_BYTES(__vsubss4, signed char, emulated_saturated(x - y))
BRIOLETTE_BYTES(__vmaxs4, signed char, x > y ? x : y)
BRIOLETTE_BYTES(__vmins4, signed char, x < y ? x : y)
BRIOLETTE_BYTES(__vmaxu4, unsigned char, x > y ? x : y)
BRIOLETTE_BYTES(__vminu4, unsigned char, x < y ? x : y)
BRIOLETTE_BYTES(__vcmpeq4, unsigned char, x == y ? 255 : 0)
BRIOLETTE_BYTES(__vcmpne4, unsigned char, x != y ? 255 : 0)
BRIOLETTE_BYTES(__vcmpgtu4, unsigned char, x > y ? 255 : 0)
BRIOLETTE_BYTES(__vcmpgts4, signed char, x > y ? 255 : 0)
BRIOLETTE_BYTES(__vsads4, signed char, x > y ? x - y : y - x)
#undef BRIOLETTE_BYTES

template <class To, class From>
inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "reinterpretation keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }

// Loads and stores with a hint for the caches.
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldca(const T* p) {
  return *p;
}
template <class T>
inline T __ldcg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
inline void __stcs(T* p, T value) {
  *p = value;
}
template <class T>
inline void __stwt(T* p, T value) {
  *p = value;
}
