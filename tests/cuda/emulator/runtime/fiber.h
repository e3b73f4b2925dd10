// Fibers: a stack each, switched by hand.
#pragma once
#include <cstddef>

// Switched by hand where the code for it is written, else by ucontext, whose switch is a system call.
// EMULATOR_UCONTEXT takes the latter anyway, to test it.
#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace emulator {

// Where a suspended flow of control goes on: the stack pointer, with all registers that a callee keeps stored above it.
#if EMULATOR_SWITCH
struct Context {
  void* stack_pointer = nullptr;
};
#else
struct Context {
  ucontext_t state;
};
#endif

// Suspends the running flow into `from` and goes on in `to`. The floating point modes are not part of either: they are
// the same on all fibers of a launch.
#if EMULATOR_SWITCH
extern "C" void emulator_switch(Context* from, Context* to);
inline void switch_context(Context& from, Context& to) { emulator_switch(&from, &to); }
#else
inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
#endif

class Fiber {
 public:
  // `number` colours the stack: without an offset each, the hot ends of all stacks would share a few cache sets.
  explicit Fiber(unsigned number);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets what ran there: the next switch to it enters `main`, which must never return.
  void reset(void (*main)());
  bool guards(const void* address) const;  // whether the address lies in the guard pages below the stack
  bool holds(const void* address) const;   // whether it lies in the stack

  Context context;

 private:
  char* memory_;
  unsigned number_;
};

}  // namespace emulator
