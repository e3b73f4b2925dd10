// What a kernel finds predefined, as NVRTC predefines it. No standard header is included here, nor can a kernel include
// one: what the kernel uses is either declared by these files or an error, here as on a GPU.
#pragma once

// The compiler's own 16-bit float: __fp16 on Arm, where g++ 12 knows no _Float16.
#if defined(__ARM_FP16_FORMAT_IEEE)
typedef __fp16 emulated_half;
#elif defined(__FLT16_MAX__) && __GNUC__ >= 12
typedef _Float16 emulated_half;
#else
#error "the emulator needs g++ 12 or newer, on x86-64 or Arm: others have no 16-bit float"
#endif

#define BRIOLETTE_EMULATED 1

typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
#define NULL __null

// __global__ and __shared__ are no macros: source.py replaces them.
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)

#define BRIOLETTE_SITE int line_ = __builtin_LINE(), const char* file_ = __builtin_FILE()
#define BRIOLETTE_HERE (emulator::Site{line_, file_})

#include "interface.h"

#include "emulated_vectors.h"
#include "emulated_math.h"
#include "emulated_bits.h"
#include "emulated_warp.h"
#include "emulated_atomics.h"
#include "emulated_mma.h"
#include "emulated_entry.h"
