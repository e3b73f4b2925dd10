// Runs the blocks of a launch, one at a time, on one thread of the operating system: a fiber for each CUDA thread that
// has to wait. Lanes hand control to each other directly; a lane that returns hands its fiber to the next one.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <memory>
#include <vector>

#include "fiber.h"
#include "launch.h"
#include "races.h"

namespace emulator {

constexpr unsigned kWarp = 32;

struct Warp;

struct Lane : Thread {
  Warp* warp;
  Fiber* fiber;  // none before the lane starts and after it returns
};

// Sets of lanes are bit masks. Each lane is in exactly one of ready, waiting, at_barrier, exited, or runs.
struct Warp {
  Lane* lanes;
  unsigned exists, ready, waiting, at_barrier, exited;
  // What each waiting lane asked for.
  Operation operation[kWarp];
  unsigned mask[kWarp];
  unsigned source[kWarp];
  Word value[kWarp];
  Word result[kWarp];
  Collective collective[kWarp];
  Site site[kWarp];  // also of the last call that synchronised
};

class Worker {
 public:
  Worker();
  ~Worker();

  static Worker* running();  // the one whose kernel runs on this thread of the operating system, or null

  // Runs one block; false, with `fault` filled, where it went wrong.
  bool run(const Launch& launch, uint3 index, Word seed, Fault& fault);
  void prepare(const Launch& launch);  // once before the blocks of a launch

  // Calls of the lane that runs, by way of interface.h.
  Word warp_operation(Operation operation, unsigned mask, Word value, unsigned source, Collective function, Site site);
  int barrier(Barrier kind, int predicate, Site site);
  [[noreturn]] void diverge(Site site);
  [[noreturn]] void disown(Operation operation, unsigned mask, Site site);
  [[noreturn]] void fail(const char* message, Site site, Word counter = 0, Word second_counter = 0);
  // From a signal handler: leaves the kernel for good.
  [[noreturn]] void escape(const char* message, Word program_counter);

  // From instrumented code: reports a race.
  void note_access(Word address, unsigned bytes, bool write, bool atomic, Word counter);
  void note_fence();

  const Fiber* fiber() const;  // the one that runs
  char* dynamic_end() const { return dynamic_end_; }

 private:
  struct Switch {
    Context& from;
    Context& to;
  };
  static void lane_main();
  Switch run_lanes();
  Lane* schedule();
  void start(Lane& lane);
  void resume(Lane* next, Context& from);
  void park(Lane& lane);
  void start_pass(Warp& warp);
  void start_round();
  bool end_round();
  bool resolve(Warp& warp);
  bool complete(Warp& warp, unsigned mask);
  void report(const char* message, const Lane& lane, Site site, bool in_source = true);
  void explain_deadlock();
  void abandon();
  void poison(const Launch& launch);
  bool shared(const char* address) const;
  unsigned random(unsigned below);

  Context host_;
  jmp_buf* escape_ = nullptr;
  const Launch* launch_ = nullptr;
  Fault* fault_ = nullptr;
  bool failed_ = false;

  Block block_;
  std::vector<Lane> lanes_;
  std::vector<Warp> warps_;
  dim3 laid_out_{0, 0, 0};
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;

  // The pass over one warp's lanes, and the round over the warps.
  Warp* warp_ = nullptr;
  unsigned position_ = 0, first_lane_ = 0, lane_step_ = 1;
  unsigned warp_position_ = 0;
  std::vector<unsigned> warp_order_;
  Word random_state_ = 0;

  // The barrier that threads wait at.
  unsigned arrived_ = 0, exited_ = 0;
  Barrier barrier_kind_ = Barrier::plain;
  Site barrier_site_{};
  unsigned predicates_ = 0;  // how many arrived with a true predicate
  unsigned released_predicates_ = 0, released_threads_ = 0;

  std::unique_ptr<Races> races_;  // only where the module is instrumented
  bool collective_ = false;       // one lane works for all: what it touches is all lanes' own

  char* dynamic_memory_ = nullptr;  // dynamic shared memory ends at a page that may not be touched
  char* dynamic_end_ = nullptr;
};

extern thread_local Worker* running_worker __attribute__((tls_model("initial-exec")));
inline Worker* Worker::running() { return running_worker; }

// What runs at each operation is inlined into the function that the kernel calls: the processor predicts returns by the
// calls it saw, and after a switch each return is a miss.
#define EMULATOR_INLINE inline __attribute__((always_inline))

EMULATOR_INLINE void Worker::resume(Lane* next, Context& from) {
  if (!next) return switch_context(from, host_);
  if (!next->fiber) start(*next);
  emulator_thread = next;
  switch_context(from, next->fiber->context);
}

EMULATOR_INLINE void Worker::park(Lane& lane) {
  Lane* next = schedule();
  if (next != &lane) resume(next, lane.fiber->context);
}

}  // namespace emulator
