#include "races.h"

#include <algorithm>
#include <cstdio>

#include "worker.h"

namespace emulator {

void Races::start_launch(Word entry) {
  entry_ = entry;
  launch_epoch_ = epoch_ + 1;
  tick_ = 0;
  blocks_.clear();
}

void Races::start_block(uint3 block, unsigned warps) {
  blocks_.push_back({++epoch_, 0, block});
  warps_.resize(warps);
  for (Clocks& warp : warps_)
    for (unsigned i = 0; i < kWarp; i++)
      for (unsigned j = 0; j < kWarp; j++) warp.clock[i][j] = i == j;
}

void Races::sync_warp(unsigned warp, unsigned mask) {
  auto& clock = warps_[warp].clock;
  uint32_t joined[kWarp] = {};
  for (unsigned i = 0; i < kWarp; i++)
    if (mask >> i & 1)
      for (unsigned j = 0; j < kWarp; j++) joined[j] = std::max(joined[j], clock[i][j]);
  for (unsigned i = 0; i < kWarp; i++)
    if (mask >> i & 1) {
      std::copy(joined, joined + kWarp, clock[i]);
      clock[i][i]++;
    }
}

Races::Cell& Races::cell(Word address) {
  const Word number = address / kPage;
  const unsigned slot = unsigned(number) % kLately;
  if (!found_[slot] || lately_[slot] != number) {
    auto& page = pages_[number];
    if (!page) page = std::make_unique<Page>();
    lately_[slot] = number;
    found_[slot] = page.get();
  }
  return found_[slot]->cells[address % kPage / kWord];
}

const Races::Started& Races::block_at(uint32_t epoch) const {
  const auto later = std::upper_bound(blocks_.begin(), blocks_.end(), epoch,
                                      [](uint32_t e, const Started& block) { return e < block.epoch; });
  return *std::prev(later);
}

bool Races::ordered(const Access& before, const Access& now, bool shared) const {
  if (before.epoch < launch_epoch_ || (before.atomic && now.atomic)) return true;
  if (before.epoch < blocks_.back().epoch) return shared || block_at(before.epoch).fence > before.tick;
  if (before.epoch < epoch_ || before.thread == now.thread) return true;
  if (before.thread / kWarp != now.thread / kWarp) return false;
  return warps_[now.thread / kWarp].clock[now.thread % kWarp][before.thread % kWarp] >= before.clock;
}

// Adds an access to a word's or a byte's history.
const Races::Access* Races::touch(History& one, const Access& now, bool shared, bool write) const {
  if (!ordered(one.write, now, shared)) return &one.write;
  if (!write) {
    if (one.read.epoch < epoch_) {
      one.earlier = one.read;
      one.reads.clear();
    } else if (one.read.thread != now.thread) {
      one.reads.push_back(one.read);
    }
    one.read = now;
    return nullptr;
  }
  if (!ordered(one.earlier, now, shared)) return &one.earlier;
  if (!ordered(one.read, now, shared)) return &one.read;
  for (const Access& read : one.reads)
    if (!ordered(read, now, shared)) return &read;
  one.reads.clear();
  one.read = one.earlier = Access{};
  one.write = now;
  return nullptr;
}

const Races::Access* Races::note(Word address, unsigned bytes, bool shared, bool write, bool atomic, unsigned thread,
                                 Word counter) {
  const uint32_t clock = warps_[thread / kWarp].clock[thread % kWarp][thread % kWarp];
  const Access now{epoch_, ++tick_, clock, int32_t(counter - entry_), uint16_t(thread), atomic};
  const Word end = address + bytes;
  const Access* other = nullptr;
  while (address < end && !other) {
    Cell& one = cell(address);
    const Word next = std::min(end, address / kWord * kWord + kWord);
    if (next - address == kWord && !one.bytes) {
      other = touch(one.whole, now, shared, write);
    } else {
      if (!one.bytes) {
        one.bytes = std::make_unique<std::array<History, kWord>>();
        one.bytes->fill(one.whole);
      }
      for (Word a = address; a < next && !other; a++) other = touch((*one.bytes)[a % kWord], now, shared, write);
    }
    address = next;
  }
  return other;
}

namespace {

void access(const volatile void* address, unsigned long bytes, bool write, bool atomic, void* caller) {
  Worker* worker = Worker::running();
  if (worker) worker->note_access(Word(address), unsigned(bytes), write, atomic, Word(caller) - 1);
}

}  // namespace

// What -fsanitize=thread calls; its own runtime is not linked. Atomics are done here, and race with plain accesses
// only.
#define HERE __builtin_return_address(0)
#define EMULATOR_ACCESS(size)                                                                                          \
  EMULATOR_EXPORT void __tsan_read##size(void* p) { access(p, size, false, false, HERE); }                             \
  EMULATOR_EXPORT void __tsan_write##size(void* p) { access(p, size, true, false, HERE); }                             \
  EMULATOR_EXPORT void __tsan_unaligned_read##size(void* p) { access(p, size, false, false, HERE); }                   \
  EMULATOR_EXPORT void __tsan_unaligned_write##size(void* p) { access(p, size, true, false, HERE); }
#define EMULATOR_FETCH(bits, T, name)                                                                                  \
  EMULATOR_EXPORT T __tsan_atomic##bits##_fetch_##name(volatile T* p, T v, int) {                                      \
    access(p, sizeof(T), true, true, HERE);                                                                            \
    return __atomic_fetch_##name(p, v, __ATOMIC_RELAXED);                                                              \
  }
#define EMULATOR_ATOMICS(bits, T)                                                                                      \
  EMULATOR_FETCH(bits, T, add)                                                                                         \
  EMULATOR_FETCH(bits, T, sub)                                                                                         \
  EMULATOR_FETCH(bits, T, and)                                                                                         \
  EMULATOR_FETCH(bits, T, or)                                                                                          \
  EMULATOR_FETCH(bits, T, xor)                                                                                         \
  EMULATOR_EXPORT T __tsan_atomic##bits##_load(const volatile T* p, int) {                                             \
    access(p, sizeof(T), true, true, HERE);                                                                            \
    return __atomic_load_n(p, __ATOMIC_RELAXED);                                                                       \
  }                                                                                                                    \
  EMULATOR_EXPORT void __tsan_atomic##bits##_store(volatile T* p, T v, int) {                                          \
    access(p, sizeof(T), true, true, HERE);                                                                            \
    __atomic_store_n(p, v, __ATOMIC_RELAXED);                                                                          \
  }                                                                                                                    \
  EMULATOR_EXPORT T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) {                                          \
    access(p, sizeof(T), true, true, HERE);                                                                            \
    return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);                                                                \
  }                                                                                                                    \
  EMULATOR_EXPORT int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* e, T v, int, int) {              \
    access(p, sizeof(T), true, true, HERE);                                                                            \
    return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                            \
  }                                                                                                                    \
  EMULATOR_EXPORT T __tsan_atomic##bits##_compare_exchange_val(volatile T* p, T e, T v, int, int) {                    \
    access(p, sizeof(T), true, true, HERE);                                                                            \
    __atomic_compare_exchange_n(p, &e, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                                  \
    return e;                                                                                                          \
  }

extern "C" {
EMULATOR_ACCESS(1)
EMULATOR_ACCESS(2)
EMULATOR_ACCESS(4)
EMULATOR_ACCESS(8)
EMULATOR_ACCESS(16)
EMULATOR_ATOMICS(16, unsigned short)
EMULATOR_ATOMICS(32, unsigned)
EMULATOR_ATOMICS(64, unsigned long)
EMULATOR_EXPORT void __tsan_read_range(void* p, unsigned long n) { access(p, n, false, false, HERE); }
EMULATOR_EXPORT void __tsan_write_range(void* p, unsigned long n) { access(p, n, true, false, HERE); }
EMULATOR_EXPORT void __tsan_atomic_thread_fence(int) {
  if (Worker* worker = Worker::running()) worker->note_fence();
}
EMULATOR_EXPORT void __tsan_func_entry(void*) {}
EMULATOR_EXPORT void __tsan_func_exit() {}
EMULATOR_EXPORT void __tsan_init() {}
}

}  // namespace emulator
