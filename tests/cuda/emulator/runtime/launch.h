// What a launch is given and what it reports: plain data, which the Python side lays out field by field (native.py).
#pragma once
#include "interface.h"

// What Python calls. All else of the runtime that kernels do not call is hidden, and so called directly.
#define EMULATOR_EXPORT __attribute__((visibility("default")))

namespace emulator {

struct Launch {
  void (*entry)(const Word* arguments);  // calls the kernel
  char* (*shared_anchor)();              // an address inside this OS thread's copy of the module's static shared memory
  Word shared_before, shared_bytes;      // how much of it lies before the anchor; how much there is
  const Word* arguments;
  Word dynamic_shared_bytes;
  dim3 grid, block;
  Word seed;
  int seeded;        // whether blocks, warps and lanes run in an order drawn from the seed; else in their natural order
  int workers;       // threads of the operating system that share the blocks
  int milliseconds;  // of the process's time; a launch that takes more is reported
  int races;         // whether the module is instrumented to find races
};

constexpr int kMostDynamicShared = 227 << 10;  // of a block of sm_90

struct Fault {
  char message[512];
  char file[256];
  int line;       // 0 where no synchronising call came before
  int in_source;  // whether `line` is the fault's own, not that of the last synchronising call
  uint3 block, thread;
  Word program_counter;  // 0, or the instruction at fault, to be looked up in the module's line table
  Word second_counter;   // of the access that raced with it, or 0
};

}  // namespace emulator
