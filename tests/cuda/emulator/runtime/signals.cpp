#include "signals.h"

#include <ucontext.h>

#include <cstdio>
#include <memory>
#include <mutex>

#include "memory.h"
#include "worker.h"

namespace emulator {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGVTALRM};
constexpr int kCount = sizeof kSignals / sizeof *kSignals;

std::mutex lock;
int launches = 0;
struct sigaction before[kCount];

Word counter_of(void* context) {
  [[maybe_unused]] const auto* user = static_cast<const ucontext_t*>(context);
#if defined(__x86_64__)
  return Word(user->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
  return Word(user->uc_mcontext.pc);
#else
  return 0;
#endif
}

void describe(int signal, const siginfo_t* info, const Worker& worker, char* message, size_t size) {
  if (signal == SIGFPE) {
    snprintf(message, size, "integer division by zero, or of the least integer by -1");
  } else if (signal == SIGILL || signal == SIGTRAP) {
    snprintf(message, size, "the kernel trapped");
  } else if (signal == SIGVTALRM) {
    snprintf(message, size, "the kernel does not end: a loop without end, or a wait for another block");
  } else if (info->si_code == SI_KERNEL) {
    // The processor names no address where vector instructions need an aligned one, or where bits above 47 are wild.
    snprintf(message, size, "misaligned access of 16 bytes or more, or a wild pointer");
  } else if (worker.fiber() && worker.fiber()->guards(info->si_addr)) {
    snprintf(message, size, "stack overflow: arrays or recursion of a thread need more than 256 KiB");
  } else {
    const char* address = static_cast<const char*>(info->si_addr);
    const auto past_shared = address - worker.dynamic_end();
    if (past_shared >= 0 && past_shared < 65536)
      snprintf(message, size, "out of bounds: access %td bytes past the end of dynamic shared memory", past_shared);
    else
      describe_address(reinterpret_cast<Word>(address), message, size);
  }
}

void handle(int signal, siginfo_t* info, void* context) {
  if (Worker* worker = Worker::running(); worker && worker->fiber()) {
    char message[400];
    describe(signal, info, *worker, message, sizeof message);
    worker->escape(message, counter_of(context));
  }
  if (signal == SIGVTALRM) return;  // on a thread that runs no kernel; the timer strikes again
  // Not a kernel's: what handled it before does so again, when the instruction is repeated on return.
  for (int i = 0; i < kCount; i++)
    if (kSignals[i] == signal) sigaction(signal, &before[i], nullptr);
}

}  // namespace

Handlers::Handlers() {
  std::lock_guard<std::mutex> guard(lock);
  if (launches++) return;
  struct sigaction ours{};
  ours.sa_sigaction = handle;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // a handler that jumps away must leave its signal unblocked
  for (int i = 0; i < kCount; i++) sigaction(kSignals[i], &ours, &before[i]);
}

Handlers::~Handlers() {
  std::lock_guard<std::mutex> guard(lock);
  if (--launches) return;
  for (int i = 0; i < kCount; i++) sigaction(kSignals[i], &before[i], nullptr);
}

Alarm::Alarm(int milliseconds) {
  const itimerval ours{{0, 100000}, {milliseconds / 1000, milliseconds % 1000 * 1000}};  // then again each 0.1 s
  setitimer(ITIMER_VIRTUAL, &ours, &before_);
}

Alarm::~Alarm() { setitimer(ITIMER_VIRTUAL, &before_, nullptr); }

AlternateStack::AlternateStack() {
  constexpr size_t size = 64 << 10;
  static thread_local std::unique_ptr<char[]> memory(new char[size]);
  stack_t ours{};
  ours.ss_sp = memory.get();
  ours.ss_size = size;
  sigaltstack(&ours, &before_);
}

AlternateStack::~AlternateStack() { sigaltstack(&before_, nullptr); }

}  // namespace emulator
