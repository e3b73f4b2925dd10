// Mathematical functions. Approximate ones (__expf, rsqrtf, __fdividef) are exact to rounding here: a test must allow
// for what a GPU gives.
#pragma once

extern "C" {
float sqrtf(float), cbrtf(float), expf(float), exp2f(float), exp10f(float), expm1f(float), logf(float), log2f(float);
float log10f(float), log1pf(float), powf(float, float), sinf(float), cosf(float), tanf(float), asinf(float),
    acosf(float);
float atanf(float), atan2f(float, float), sinhf(float), coshf(float), tanhf(float), erff(float), erfcf(float);
float fabsf(float), floorf(float), ceilf(float), truncf(float), roundf(float), rintf(float), nearbyintf(float);
float fmaf(float, float, float), fmodf(float, float), fmaxf(float, float), fminf(float, float), copysignf(float, float);
float ldexpf(float, int), frexpf(float, int*), scalbnf(float, int), hypotf(float, float), fdimf(float, float);
void sincosf(float, float*, float*);
long lrintf(float), lroundf(float);
double sqrt(double), exp(double), exp2(double), log(double), log2(double), pow(double, double), sin(double),
    cos(double);
double fabs(double), floor(double), ceil(double), trunc(double), round(double), rint(double),
    fma(double, double, double);
double fmod(double, double), fmax(double, double), fmin(double, double), tanh(double), erf(double), ldexp(double, int);
int abs(int), printf(const char*, ...);
long long llabs(long long);
void *memcpy(void*, const void*, size_t), *memset(void*, int, size_t);
}

// As in CUDA, the unsuffixed names take floats too.
#define BRIOLETTE_OVERLOAD(name)                                                                                       \
  inline float name(float x) { return name##f(x); }
BRIOLETTE_OVERLOAD(sqrt)
BRIOLETTE_OVERLOAD(exp)
BRIOLETTE_OVERLOAD(exp2)
BRIOLETTE_OVERLOAD(log)
BRIOLETTE_OVERLOAD(log2)
BRIOLETTE_OVERLOAD(sin)
BRIOLETTE_OVERLOAD(cos)
BRIOLETTE_OVERLOAD(floor)
BRIOLETTE_OVERLOAD(ceil)
BRIOLETTE_OVERLOAD(trunc)
BRIOLETTE_OVERLOAD(round)
BRIOLETTE_OVERLOAD(rint)
BRIOLETTE_OVERLOAD(tanh)
BRIOLETTE_OVERLOAD(erf)
BRIOLETTE_OVERLOAD(fabs)
#undef BRIOLETTE_OVERLOAD
inline float pow(float x, float y) { return powf(x, y); }
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
inline float fmax(float x, float y) { return fmaxf(x, y); }
inline float fmin(float x, float y) { return fminf(x, y); }
inline float abs(float x) { return fabsf(x); }
inline double abs(double x) { return fabs(x); }
inline long long abs(long long x) { return x < 0 ? -x : x; }

#define isnan(x) __builtin_isnan(x)
#define isinf(x) __builtin_isinf(x)
#define isfinite(x) __builtin_isfinite(x)
#define signbit(x) __builtin_signbit(x)

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float normcdff(float x) { return 0.5f * erfcf(x * -0.70710678f); }
inline float sinpif(float x) { return sinf(x * 3.14159265f); }
inline float cospif(float x) { return cosf(x * 3.14159265f); }

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return exp10f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline void __sincosf(float x, float* s, float* c) { sincosf(x, s, c); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// Rounded once each, never contracted into a fused multiply-add: an empty asm keeps the compiler from seeing the
// product.
inline float emulated_opaque(float x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  volatile float y = x;
  x = y;
#endif
  return x;
}
inline float __fadd_rn(float x, float y) { return emulated_opaque(x) + emulated_opaque(y); }
inline float __fsub_rn(float x, float y) { return emulated_opaque(x) - emulated_opaque(y); }
inline float __fmul_rn(float x, float y) { return emulated_opaque(x * y); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return float(1.0 / sqrt(double(x))); }

// Conversions of floats saturate, and take NaN to 0, as on the GPU; C++ leaves both open.
inline int emulated_int(float x) {
  if (x != x) return 0;
  return x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : int(x);
}
inline unsigned emulated_unsigned(float x) { return !(x > 0.0f) ? 0u : x >= 4294967296.0f ? 4294967295u : unsigned(x); }
inline int __float2int_rn(float x) { return emulated_int(rintf(x)); }
inline int __float2int_rz(float x) { return emulated_int(x); }
inline int __float2int_ru(float x) { return emulated_int(ceilf(x)); }
inline int __float2int_rd(float x) { return emulated_int(floorf(x)); }
inline unsigned __float2uint_rn(float x) { return emulated_unsigned(rintf(x)); }
inline unsigned __float2uint_rz(float x) { return emulated_unsigned(x); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

// min and max of CUDA: of mixed signedness as unsigned, of floats the number where one is NaN.
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
#define BRIOLETTE_EXTREMES(R, A, B)                                                                                    \
  inline R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; }                                                         \
  inline R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
BRIOLETTE_EXTREMES(unsigned, unsigned, unsigned)
BRIOLETTE_EXTREMES(unsigned, int, unsigned)
BRIOLETTE_EXTREMES(unsigned, unsigned, int)
BRIOLETTE_EXTREMES(long, long, long)
BRIOLETTE_EXTREMES(unsigned long, unsigned long, unsigned long)
BRIOLETTE_EXTREMES(unsigned long, long, unsigned long)
BRIOLETTE_EXTREMES(unsigned long, unsigned long, long)
BRIOLETTE_EXTREMES(long long, long long, long long)
BRIOLETTE_EXTREMES(unsigned long long, unsigned long long, unsigned long long)
BRIOLETTE_EXTREMES(unsigned long long, long long, unsigned long long)
BRIOLETTE_EXTREMES(unsigned long long, unsigned long long, long long)
#undef BRIOLETTE_EXTREMES
