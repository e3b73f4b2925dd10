#include "fiber.h"

#include <sys/mman.h>

#include <cstdlib>

namespace emulator {
namespace {

constexpr size_t kGuard = 4096 * 16;  // a multiple of every page size in use
constexpr size_t kStack = 256 << 10;  // reserved; pages that are never touched cost nothing

}  // namespace

#if EMULATOR_SWITCH && defined(__x86_64__)
// Six registers are the callee's to keep. The way back is a jump: a `ret` would be mispredicted each time, for it comes
// from another stack than the call.
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rdx
  jmp *%rdx
.size emulator_switch, .-emulator_switch
)");
#elif EMULATOR_SWITCH && defined(__aarch64__)
// x19 to x30 and the low halves of v8 to v15 are the callee's to keep; x30 is where to go on.
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, %function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  ldr x9, [x1]
  mov sp, x9
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch, .-emulator_switch
)");
#endif

Fiber::Fiber(unsigned number) : number_(number) {
  void* memory =
      mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  memory_ = static_cast<char*>(memory);
  mprotect(memory_, kGuard, PROT_NONE);
}

Fiber::~Fiber() { munmap(memory_, kGuard + kStack); }

bool Fiber::guards(const void* address) const {
  const char* a = static_cast<const char*>(address);
  return a >= memory_ && a < memory_ + kGuard;
}

bool Fiber::holds(const void* address) const {
  const char* a = static_cast<const char*>(address);
  return a >= memory_ + kGuard && a < memory_ + kGuard + kStack;
}

void Fiber::reset(void (*main)()) {
  char* top = memory_ + kGuard + kStack - 64 - number_ % 61 * 256;
#if EMULATOR_SWITCH && defined(__x86_64__)
  void** frame = reinterpret_cast<void**>(top);
  *--frame = nullptr;  // where `main` would return to; it also aligns the stack as after a call
  *--frame = reinterpret_cast<void*>(main);
  context.stack_pointer = frame - 6;
#elif EMULATOR_SWITCH && defined(__aarch64__)
  void** frame = reinterpret_cast<void**>(top) - 20;
  frame[11] = reinterpret_cast<void*>(main);  // x30
  context.stack_pointer = frame;
#else
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = memory_ + kGuard;
  context.state.uc_stack.ss_size = static_cast<size_t>(top - memory_) - kGuard;
  context.state.uc_link = nullptr;
  makecontext(&context.state, main, 0);
#endif
}

}  // namespace emulator
