// What a compiled kernel and the runtime know of each other. Both sides include this file, so it includes nothing:
// kernels see no standard header, as under NVRTC.
#pragma once

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return uint3{x, y, z}; }
};

namespace emulator {

using Word = unsigned long long;  // what a lane hands to a warp operation, and a launch to a kernel

// A place in a kernel's source. Kernels get it from __builtin_LINE() in default arguments: that of the caller.
struct Site {
  int line;
  const char* file;
};

enum class Operation : unsigned char {
  none,
  shuffle,
  ballot,
  any,
  all,
  sync_warp,
  add,
  minimum,
  maximum,
  signed_minimum,
  signed_maximum,
  bit_and,
  bit_or,
  bit_xor,
  match_any,
  collective
};
enum class Barrier : unsigned char { plain, count, all, any };

// The part of a block that its kernel reads.
struct Block {
  uint3 index;  // blockIdx
  dim3 size;    // blockDim
  dim3 grid;    // gridDim
  char* dynamic_shared;
};

// The part of a CUDA thread that its kernel reads.
struct Thread {
  uint3 index;  // threadIdx
  unsigned lane;
  Block* block;
};

// A function that one lane runs for its warp: operands[lane] is what each lane handed in.
using Collective = void (*)(void* const* operands);

#pragma GCC visibility push(default)
extern "C" {
// The CUDA thread that runs now on this thread of the operating system.
extern thread_local Thread* emulator_thread __attribute__((tls_model("initial-exec")));

// One lane's part in a warp operation; returns when all lanes of the mask have come. `source`: lane that a shuffle
// reads.
Word emulator_warp(Operation operation, unsigned mask, Word value, unsigned source, Site site);
// Lanes hand in pointers; the function runs once, when all 32 have come.
void emulator_collective(Collective function, void* operand, Site site);
// Returns when all threads of the block have come; the value of __syncthreads_count, _and, _or for those.
int emulator_barrier(Barrier barrier, int predicate, Site site);
// Ends the launch with a report.
[[noreturn]] void emulator_fault(const char* message, Site site);
}
#pragma GCC visibility pop

}  // namespace emulator
