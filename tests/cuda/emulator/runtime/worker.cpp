#include "worker.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulator {

thread_local Thread* emulator_thread = nullptr;
thread_local Worker* running_worker = nullptr;

namespace {

constexpr size_t kDynamic = 256 << 10;
constexpr size_t kGuard = 64 << 10;
constexpr unsigned char kPoison = 0xff;  // NaN in every float format, -1 in integers

Lane& current() { return *static_cast<Lane*>(emulator_thread); }

}  // namespace

Worker::Worker() {
  void* memory = mmap(nullptr, kDynamic + 2 * kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  dynamic_memory_ = static_cast<char*>(memory);
  dynamic_end_ = dynamic_memory_ + kGuard + kDynamic;
  mprotect(dynamic_memory_ + kGuard, kDynamic, PROT_READ | PROT_WRITE);
}

Worker::~Worker() { munmap(dynamic_memory_, kDynamic + 2 * kGuard); }

void Worker::prepare(const Launch& launch) {
  launch_ = &launch;
  block_.size = launch.block;
  block_.grid = launch.grid;
  // Right against the guard page; real allocations are aligned to 16 bytes at least, so some bytes may be left over.
  block_.dynamic_shared = dynamic_end_ - (launch.dynamic_shared_bytes + 15) / 16 * 16;
  const dim3 size = launch.block;
  if (launch.races && !races_) races_ = std::make_unique<Races>();
  if (!launch.races) races_.reset();
  if (races_) races_->start_launch(Word(launch.entry));
  if (size.x == laid_out_.x && size.y == laid_out_.y && size.z == laid_out_.z) return;
  laid_out_ = size;
  const unsigned threads = size.x * size.y * size.z;
  lanes_.assign(threads, Lane{});
  warps_.assign((threads + kWarp - 1) / kWarp, Warp{});
  warp_order_.resize(warps_.size());
  for (unsigned i = 0; i < threads; i++) {
    Lane& lane = lanes_[i];
    lane.index = uint3{i % size.x, i / size.x % size.y, i / size.x / size.y};
    lane.lane = i % kWarp;
    lane.block = &block_;
    lane.warp = &warps_[i / kWarp];
    lane.warp->exists |= 1u << lane.lane;
  }
  for (size_t w = 0; w < warps_.size(); w++) warps_[w].lanes = &lanes_[w * kWarp];
}

void Worker::poison(const Launch& launch) {
  if (launch.shared_bytes) memset(launch.shared_anchor() - launch.shared_before, kPoison, launch.shared_bytes);
  if (launch.dynamic_shared_bytes) memset(block_.dynamic_shared, kPoison, dynamic_end_ - block_.dynamic_shared);
}

bool Worker::run(const Launch& launch, uint3 index, Word seed, Fault& fault) {
  jmp_buf escape;
  block_.index = index;
  fault_ = &fault;
  failed_ = false;
  random_state_ = seed;
  arrived_ = exited_ = predicates_ = 0;
  collective_ = false;
  poison(launch);
  for (size_t w = 0; w < warps_.size(); w++) {
    Warp& warp = warps_[w];
    warp.ready = warp.exists;
    warp.waiting = warp.at_barrier = warp.exited = 0;
    memset(warp.site, 0, sizeof warp.site);
    warp_order_[w] = unsigned(w);
  }
  if (races_) races_->start_block(index, unsigned(warps_.size()));
  escape_ = &escape;
  running_worker = this;
  // The signal mask is not part of it: handlers run with SA_NODEFER.
  if (_setjmp(escape) == 0) {
    start_round();
    if (Lane* first = schedule()) resume(first, host_);
  }
  running_worker = nullptr;
  emulator_thread = nullptr;
  if (failed_) abandon();
  return !failed_;
}

// Fibers that wait in the midst of a kernel start anew; their kernels are forgotten.
void Worker::abandon() {
  for (Lane& lane : lanes_) lane.fiber = nullptr;
  idle_.clear();
  for (auto& fiber : fibers_) {
    fiber->reset(lane_main);
    idle_.push_back(fiber.get());
  }
}

// An idle fiber may go on in another thread of the operating system than it was left in, and compilers keep the address
// of thread-local variables over calls. So what uses such variables is a function that ends before the switch.
void Worker::lane_main() {
  Worker& worker = *running_worker;
  for (;;) {
    const Switch next = worker.run_lanes();
    switch_context(next.from, next.to);
  }
}

// Runs the current lane, then those that start after it, until one goes on that waited elsewhere or the block is done.
__attribute__((noinline)) Worker::Switch Worker::run_lanes() {
  for (;;) {
    launch_->entry(launch_->arguments);
    Lane& lane = current();
    lane.warp->exited |= 1u << lane.lane;
    exited_++;
    Fiber* fiber = lane.fiber;
    lane.fiber = nullptr;
    Lane* next = schedule();
    if (next && !next->fiber) {
      next->fiber = fiber;
      emulator_thread = next;
      continue;
    }
    idle_.push_back(fiber);
    if (!next) return {fiber->context, host_};
    emulator_thread = next;
    return {fiber->context, next->fiber->context};
  }
}

// Gives a lane that starts a fiber to run on.
__attribute__((noinline)) void Worker::start(Lane& lane) {
  if (idle_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>(unsigned(fibers_.size())));
    fibers_.back()->reset(lane_main);
    idle_.push_back(fibers_.back().get());
  }
  lane.fiber = idle_.back();
  idle_.pop_back();
}

const Fiber* Worker::fiber() const { return emulator_thread ? current().fiber : nullptr; }

unsigned Worker::random(unsigned below) {
  random_state_ += 0x9e3779b97f4a7c15ull;  // splitmix64
  Word z = random_state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return unsigned(((z >> 32) * below) >> 32);
}

// Lanes go in an affine order: any first lane, any odd step.
void Worker::start_pass(Warp& warp) {
  warp_ = &warp;
  position_ = 0;
  if (launch_->seeded && warp.ready) {
    const unsigned drawn = random(kWarp * kWarp / 2);
    first_lane_ = drawn % kWarp;
    lane_step_ = drawn / kWarp * 2 + 1;
  } else {
    first_lane_ = 0;
    lane_step_ = 1;
  }
}

void Worker::start_round() {
  if (launch_->seeded)
    for (unsigned i = unsigned(warp_order_.size()) - 1; i > 0; i--)
      std::swap(warp_order_[i], warp_order_[random(i + 1)]);
  warp_position_ = 0;
  start_pass(warps_[warp_order_[0]]);
}

// The lane to run next; none where the block is done or went wrong.
Lane* Worker::schedule() {
  for (;;) {
    while (position_ < kWarp && warp_->ready) {
      const unsigned lane = (first_lane_ + lane_step_ * position_++) % kWarp;
      if (warp_->ready >> lane & 1) {
        warp_->ready &= ~(1u << lane);
        return &warp_->lanes[lane];
      }
    }
    // A seeded schedule leaves a warp now and then although it could go on.
    const bool moved = warp_->waiting && resolve(*warp_);
    if (failed_) return nullptr;
    if (moved && !(launch_->seeded && random(4) == 0)) {
      start_pass(*warp_);
      continue;
    }
    if (++warp_position_ < warps_.size()) {
      start_pass(warps_[warp_order_[warp_position_]]);
      continue;
    }
    if (!end_round()) return nullptr;
    start_round();
  }
}

// Whether there is another round.
bool Worker::end_round() {
  if (exited_ == lanes_.size()) return false;
  for (Warp& warp : warps_)
    if (warp.ready) return true;
  if (arrived_ + exited_ < lanes_.size()) {
    explain_deadlock();
    return false;
  }
  if (exited_) {
    const Warp* returned = &warps_[0];
    while (!returned->exited) returned++;
    const Lane& gone = returned->lanes[__builtin_ctz(returned->exited)];
    for (Warp& warp : warps_)
      if (warp.at_barrier) {
        char message[200];
        snprintf(message, sizeof message,
                 "__syncthreads waits for %u threads that have returned, thread (%u, %u, %u) first", exited_,
                 gone.index.x, gone.index.y, gone.index.z);
        report(message, warp.lanes[__builtin_ctz(warp.at_barrier)], barrier_site_);
        return false;
      }
  }
  for (Warp& warp : warps_) {
    warp.ready = warp.at_barrier;
    warp.at_barrier = 0;
  }
  if (races_) races_->barrier();
  released_predicates_ = predicates_;
  released_threads_ = arrived_;
  arrived_ = predicates_ = 0;
  return true;
}

void Worker::diverge(Site site) {
  char message[300];
  snprintf(message, sizeof message, "divergent __syncthreads: other threads wait in the one at %s:%d",
           barrier_site_.file, barrier_site_.line);
  fail(message, site);
}

EMULATOR_INLINE int Worker::barrier(Barrier kind, int predicate, Site site) {
  Lane& lane = current();
  Warp& warp = *lane.warp;
  if (arrived_ == 0) {
    barrier_site_ = site;
    barrier_kind_ = kind;
  } else if (site.line != barrier_site_.line || kind != barrier_kind_) {
    diverge(site);
  }
  arrived_++;
  predicates_ += predicate != 0;
  warp.at_barrier |= 1u << lane.lane;
  warp.site[lane.lane] = site;
  park(lane);
  switch (kind) {
    case Barrier::all: return released_predicates_ == released_threads_;
    case Barrier::any: return released_predicates_ != 0;
    default: return int(released_predicates_);
  }
}

void Worker::report(const char* message, const Lane& lane, Site site, bool in_source) {
  if (failed_) return;
  failed_ = true;
  snprintf(fault_->message, sizeof fault_->message, "%s", message);
  snprintf(fault_->file, sizeof fault_->file, "%s", site.file ? site.file : "");
  fault_->line = site.line;
  fault_->in_source = in_source;
  fault_->block = block_.index;
  fault_->thread = lane.index;
}

void Worker::fail(const char* message, Site site, Word counter, Word second_counter) {
  Lane& lane = current();
  report(message, lane, site);
  fault_->program_counter = counter;
  fault_->second_counter = second_counter;
  resume(nullptr, lane.fiber->context);
  abort();  // nobody resumes an abandoned fiber
}

void Worker::escape(const char* message, Word program_counter) {
  const Lane& lane = current();
  report(message, lane, lane.warp->site[lane.lane], false);
  fault_->program_counter = program_counter;
  _longjmp(*escape_, 1);
}

bool Worker::shared(const char* address) const {
  if (address >= dynamic_memory_ && address < dynamic_end_) return true;
  const char* start = launch_->shared_anchor() - launch_->shared_before;
  return address >= start && address < start + launch_->shared_bytes;
}

void Worker::note_access(Word address, unsigned bytes, bool write, bool atomic, Word counter) {
  const char* place = reinterpret_cast<const char*>(address);
  if (!races_ || collective_ || !fiber() || fiber()->holds(place)) return;
  Lane& lane = current();
  const unsigned thread = unsigned(&lane - lanes_.data());
  const Races::Access* other = races_->note(address, bytes, shared(place), write, atomic, thread, counter);
  if (!other) return;
  const uint3 index = lanes_[other->thread].index, block = races_->block_of(*other);
  char message[300];
  snprintf(message, sizeof message,
           "race: nothing orders this %s and the access by thread (%u, %u, %u) of block (%u, %u, %u)",
           write ? "write" : "read", index.x, index.y, index.z, block.x, block.y, block.z);
  fail(message, lane.warp->site[lane.lane], counter, races_->counter_of(*other));
}

void Worker::note_fence() {
  if (races_) races_->fence();
}

extern "C" {
int emulator_barrier(Barrier barrier, int predicate, Site site) {
  return running_worker->barrier(barrier, predicate, site);
}

void emulator_fault(const char* message, Site site) { running_worker->fail(message, site); }
}

}  // namespace emulator
