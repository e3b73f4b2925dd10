// __half and __half2 as cuda_fp16.h has them, as far as kernels use them. Arithmetic rounds once, to nearest even.
#pragma once

struct __half_raw {
  unsigned short x;
};

struct __half {
  unsigned short bits;

  __half() = default;
  constexpr __half(__half_raw raw) : bits(raw.x) {}
  __half(float x) : bits(emulated_bits<unsigned short>((emulated_half)x)) {}
  __half(double x) : bits(emulated_bits<unsigned short>((emulated_half)x)) {}
  __half(int x) : __half(float(x)) {}
  __half(unsigned x) : __half(float(x)) {}
  operator float() const { return float(emulated_bits<emulated_half>(bits)); }
  explicit operator __half_raw() const { return __half_raw{bits}; }
};
typedef __half half;

struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half x_, __half y_) : x(x_), y(y_) {}
};
typedef __half2 half2;

inline float __half2float(__half h) { return float(h); }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half __double2half(double x) { return __half(x); }
inline __half __int2half_rn(int x) { return __half(x); }
inline int __half2int_rn(__half h) { return __float2int_rn(float(h)); }
inline __half __float2half_rz(float x) {
  __half h(x);
  if (__builtin_fabsf(float(h)) > __builtin_fabsf(x)) h.bits--;  // the next one nearer to zero
  return h;
}
inline __half __ushort_as_half(unsigned short x) { return __half(__half_raw{x}); }
inline __half __short_as_half(short x) { return __ushort_as_half((unsigned short)x); }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline short __half_as_short(__half h) { return short(h.bits); }

inline __half2 __halves2half2(__half x, __half y) { return __half2(x, y); }
inline __half2 make_half2(__half x, __half y) { return __half2(x, y); }
inline __half2 __half2half2(__half x) { return __half2(x, x); }
inline __half2 __float2half2_rn(float x) { return __half2(__half(x), __half(x)); }
inline __half2 __floats2half2_rn(float x, float y) { return __half2(__half(x), __half(y)); }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline float2 __half22float2(__half2 v) { return make_float2(float(v.x), float(v.y)); }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return float(v.x); }
inline float __high2float(__half2 v) { return float(v.y); }
inline __half2 __lowhigh2highlow(__half2 v) { return __half2(v.y, v.x); }

// Sums and products of two halves are exact enough in float: rounding that to half is the correct rounding. A fused
// multiply-add needs double for that.
inline __half __hadd(__half a, __half b) { return __half(float(a) + float(b)); }
inline __half __hsub(__half a, __half b) { return __half(float(a) - float(b)); }
inline __half __hmul(__half a, __half b) { return __half(float(a) * float(b)); }
inline __half __hdiv(__half a, __half b) { return __half(float(a) / float(b)); }
inline __half __hfma(__half a, __half b, __half c) { return __half(double(float(a)) * float(b) + float(c)); }
inline __half __hneg(__half a) { return __ushort_as_half((unsigned short)(a.bits ^ 0x8000)); }
inline __half __habs(__half a) { return __ushort_as_half((unsigned short)(a.bits & 0x7fff)); }
inline __half __hmax(__half a, __half b) { return __half(fmaxf(float(a), float(b))); }
inline __half __hmin(__half a, __half b) { return __half(fminf(float(a), float(b))); }
inline bool __hisnan(__half a) { return (a.bits & 0x7fff) > 0x7c00; }
inline bool __heq(__half a, __half b) { return float(a) == float(b); }
inline bool __hlt(__half a, __half b) { return float(a) < float(b); }
inline bool __hgt(__half a, __half b) { return float(a) > float(b); }
inline bool __hle(__half a, __half b) { return float(a) <= float(b); }
inline bool __hge(__half a, __half b) { return float(a) >= float(b); }
inline __half hexp(__half a) { return __half(expf(float(a))); }
inline __half hlog(__half a) { return __half(logf(float(a))); }
inline __half hsqrt(__half a) { return __half(sqrtf(float(a))); }
inline __half hrsqrt(__half a) { return __half(rsqrtf(float(a))); }
inline __half hrcp(__half a) { return __half(1.0f / float(a)); }

inline __half2 __hadd2(__half2 a, __half2 b) { return __half2(__hadd(a.x, b.x), __hadd(a.y, b.y)); }
inline __half2 __hsub2(__half2 a, __half2 b) { return __half2(__hsub(a.x, b.x), __hsub(a.y, b.y)); }
inline __half2 __hmul2(__half2 a, __half2 b) { return __half2(__hmul(a.x, b.x), __hmul(a.y, b.y)); }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
inline __half2 __hmax2(__half2 a, __half2 b) { return __half2(__hmax(a.x, b.x), __hmax(a.y, b.y)); }
inline __half2 __hmin2(__half2 a, __half2 b) { return __half2(__hmin(a.x, b.x), __hmin(a.y, b.y)); }
inline __half2 __hneg2(__half2 a) { return __half2(__hneg(a.x), __hneg(a.y)); }

#define BRIOLETTE_OPERATOR(T, sign, function)                                                                          \
  inline T operator sign(T a, T b) { return function(a, b); }                                                          \
  inline T& operator sign##=(T& a, T b) { return a = function(a, b); }
BRIOLETTE_OPERATOR(__half, +, __hadd)
BRIOLETTE_OPERATOR(__half, -, __hsub)
BRIOLETTE_OPERATOR(__half, *, __hmul)
BRIOLETTE_OPERATOR(__half, /, __hdiv)
BRIOLETTE_OPERATOR(__half2, +, __hadd2)
BRIOLETTE_OPERATOR(__half2, -, __hsub2)
BRIOLETTE_OPERATOR(__half2, *, __hmul2)
#undef BRIOLETTE_OPERATOR
inline __half operator-(__half a) { return __hneg(a); }

inline __half atomicAdd(__half* p, __half v) {
  unsigned short before = __atomic_load_n(&p->bits, __ATOMIC_RELAXED), after;
  do after = __hadd(__ushort_as_half(before), v).bits;
  while (!__atomic_compare_exchange_n(&p->bits, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return __ushort_as_half(before);
}
