// Vector types with the sizes and alignments of CUDA's vector_types.h.
#pragma once

#define BRIOLETTE_VECTORS(T, name, align2, align4)                                                                     \
  struct name##1 { T x; };                                                                                             \
  struct alignas(align2) name##2 { T x, y; };                                                                          \
  struct alignas(align4) name##4 { T x, y, z, w; };                                                                    \
  inline name##1 make_##name##1(T x) { return name##1 {x}; }                                                           \
  inline name##2 make_##name##2(T x, T y) { return name##2 {x, y}; }                                                   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4 {x, y, z, w}; }

BRIOLETTE_VECTORS(signed char, char, 2, 4)
BRIOLETTE_VECTORS(unsigned char, uchar, 2, 4)
BRIOLETTE_VECTORS(short, short, 4, 8)
BRIOLETTE_VECTORS(unsigned short, ushort, 4, 8)
BRIOLETTE_VECTORS(int, int, 8, 16)
BRIOLETTE_VECTORS(unsigned, uint, 8, 16)
BRIOLETTE_VECTORS(long long, longlong, 16, 16)
BRIOLETTE_VECTORS(unsigned long long, ulonglong, 16, 16)
BRIOLETTE_VECTORS(float, float, 8, 16)
BRIOLETTE_VECTORS(double, double, 16, 16)
#undef BRIOLETTE_VECTORS

#define BRIOLETTE_TRIPLE(T, name)                                                                                      \
  struct name {                                                                                                        \
    T x, y, z;                                                                                                         \
  };                                                                                                                   \
  inline name make_##name(T x, T y, T z) { return name{x, y, z}; }
BRIOLETTE_TRIPLE(char, char3)
BRIOLETTE_TRIPLE(unsigned char, uchar3)
BRIOLETTE_TRIPLE(short, short3)
BRIOLETTE_TRIPLE(unsigned short, ushort3)
BRIOLETTE_TRIPLE(int, int3)
BRIOLETTE_TRIPLE(float, float3)
BRIOLETTE_TRIPLE(double, double3)
#undef BRIOLETTE_TRIPLE
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return uint3{x, y, z}; }
