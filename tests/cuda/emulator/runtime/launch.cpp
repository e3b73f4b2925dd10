// A launch: its blocks, in the order that the seed asks for, shared among threads of the operating system.
#include "launch.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "signals.h"
#include "worker.h"

namespace emulator {
namespace {

Word mixed(Word a, Word b) {
  Word z = a * 0x9e3779b97f4a7c15ull + b + 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93ull;
  return z ^ (z >> 32);
}

// Subnormal floats are zero, as CuPy compiles kernels (-ftz=true).
class FlushToZero {
 public:
#if defined(__x86_64__)
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // FTZ and DAZ
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushToZero() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | 1ul << 24));  // FZ
  }
  ~FlushToZero() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  unsigned long before_;
#else
  FlushToZero() {}
#endif
};

// Blocks in an affine order: position i runs block (first + step * i) mod count, with a step prime to the count.
struct Order {
  Word first = 0, step = 1, count;

  explicit Order(const Launch& launch) : count(Word(launch.grid.x) * launch.grid.y * launch.grid.z) {
    if (!launch.seeded || count < 2) return;
    first = mixed(launch.seed, 1) % count;
    step = mixed(launch.seed, 2) % count;
    while (std::gcd(step, count) != 1) step = (step + 1) % count;
  }
  Word block(Word position) const { return Word((first + (unsigned __int128)(step)*position) % count); }
};

// Workers that no launch uses now: their fibers are ready. They belong to no thread of the operating system.
class Idle {
 public:
  std::unique_ptr<Worker> take() {
    std::lock_guard<std::mutex> guard(lock_);
    if (workers_.empty()) return std::make_unique<Worker>();
    auto worker = std::move(workers_.back());
    workers_.pop_back();
    return worker;
  }
  void give(std::unique_ptr<Worker> worker) {
    std::lock_guard<std::mutex> guard(lock_);
    workers_.push_back(std::move(worker));
  }

 private:
  std::mutex lock_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

Idle& idle() {
  static Idle workers;
  return workers;
}

struct Progress {
  std::atomic<Word> next{0};
  std::atomic<bool> failed{false};
  std::mutex lock;
  Fault* fault;
};

void run_blocks(const Launch& launch, const Order& order, Progress& progress) {
  AlternateStack stack;
  FlushToZero mode;
  std::unique_ptr<Worker> worker = idle().take();
  worker->prepare(launch);
  while (!progress.failed.load(std::memory_order_relaxed)) {
    const Word position = progress.next.fetch_add(1, std::memory_order_relaxed);
    if (position >= order.count) break;
    const Word block = order.block(position);
    const uint3 index{unsigned(block % launch.grid.x), unsigned(block / launch.grid.x % launch.grid.y),
                      unsigned(block / launch.grid.x / launch.grid.y)};
    Fault fault{};
    if (worker->run(launch, index, mixed(launch.seed, block + 3), fault)) continue;
    std::lock_guard<std::mutex> guard(progress.lock);
    if (!progress.failed.exchange(true)) *progress.fault = fault;
  }
  idle().give(std::move(worker));
}

}  // namespace

// Returns 0, or 1 with `fault` filled. Blocks that run at the same time as the one at fault end first.
extern "C" EMULATOR_EXPORT int emulator_launch(const Launch* launch, Fault* fault) {
  const Order order(*launch);
  Progress progress;
  progress.fault = fault;
  Handlers handlers;
  Alarm alarm(launch->milliseconds);
  std::vector<std::thread> others;
  for (int i = 1; i < launch->workers && Word(i) < order.count; i++)
    others.emplace_back([&] { run_blocks(*launch, order, progress); });
  run_blocks(*launch, order, progress);
  for (std::thread& other : others) other.join();
  return progress.failed.load();
}

}  // namespace emulator
