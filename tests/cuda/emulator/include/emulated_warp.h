// Thread indices, warp and block operations. Each hands its caller's line to the runtime.
#pragma once

#define threadIdx (emulator::emulator_thread->index)
#define blockIdx (emulator::emulator_thread->block->index)
#define blockDim (emulator::emulator_thread->block->size)
#define gridDim (emulator::emulator_thread->block->grid)
#define warpSize 32

inline void __syncthreads(BRIOLETTE_SITE) { emulator::emulator_barrier(emulator::Barrier::plain, 0, BRIOLETTE_HERE); }
inline int __syncthreads_count(int p, BRIOLETTE_SITE) {
  return emulator::emulator_barrier(emulator::Barrier::count, p, BRIOLETTE_HERE);
}
inline int __syncthreads_and(int p, BRIOLETTE_SITE) {
  return emulator::emulator_barrier(emulator::Barrier::all, p, BRIOLETTE_HERE);
}
inline int __syncthreads_or(int p, BRIOLETTE_SITE) {
  return emulator::emulator_barrier(emulator::Barrier::any, p, BRIOLETTE_HERE);
}

inline void __syncwarp(unsigned mask = ~0u, BRIOLETTE_SITE) {
  emulator::emulator_warp(emulator::Operation::sync_warp, mask, 0, 0, BRIOLETTE_HERE);
}

// Lanes run one after the other, so none can promise that another is with it. That is all a kernel may rely on.
inline unsigned __activemask() { return 1u << emulator::emulator_thread->lane; }

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { __builtin_trap(); }
inline void emulated_assert(bool holds, const char* text, BRIOLETTE_SITE) {
  if (!holds) emulator::emulator_fault(text, BRIOLETTE_HERE);
}
#define assert(condition) emulated_assert(bool(condition), "assertion failed: " #condition)

// Any trivial type of up to 8 bytes goes through a shuffle.
template <class T>
inline T emulated_shuffle(unsigned mask, T value, unsigned source, emulator::Site site) {
  static_assert(sizeof(T) <= 8 && __is_trivially_copyable(T), "a shuffle takes at most 8 bytes");
  emulator::Word word = 0;
  __builtin_memcpy(&word, &value, sizeof value);
  word = emulator::emulator_warp(emulator::Operation::shuffle, mask, word, source, site);
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}

// Lanes form groups of `width`; a lane that would read outside of its group reads itself. (An xor may read lower
// groups.)
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, BRIOLETTE_SITE) {
  const int lane = int(emulator::emulator_thread->lane);
  return emulated_shuffle(mask, value, unsigned((lane & ~(width - 1)) + (source & (width - 1))), BRIOLETTE_HERE);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, BRIOLETTE_SITE) {
  const int lane = int(emulator::emulator_thread->lane), source = lane - int(delta);
  return emulated_shuffle(mask, value, unsigned(source < (lane & ~(width - 1)) ? lane : source), BRIOLETTE_HERE);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, BRIOLETTE_SITE) {
  const int lane = int(emulator::emulator_thread->lane), source = lane + int(delta);
  return emulated_shuffle(mask, value, unsigned(source > (lane | (width - 1)) ? lane : source), BRIOLETTE_HERE);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, BRIOLETTE_SITE) {
  const int lane = int(emulator::emulator_thread->lane), source = lane ^ bits;
  return emulated_shuffle(mask, value, unsigned(source > (lane | (width - 1)) ? lane : source), BRIOLETTE_HERE);
}

inline unsigned __ballot_sync(unsigned mask, int p, BRIOLETTE_SITE) {
  return unsigned(emulator::emulator_warp(emulator::Operation::ballot, mask, p != 0, 0, BRIOLETTE_HERE));
}
inline int __any_sync(unsigned mask, int p, BRIOLETTE_SITE) {
  return int(emulator::emulator_warp(emulator::Operation::any, mask, p != 0, 0, BRIOLETTE_HERE));
}
inline int __all_sync(unsigned mask, int p, BRIOLETTE_SITE) {
  return int(emulator::emulator_warp(emulator::Operation::all, mask, p != 0, 0, BRIOLETTE_HERE));
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, BRIOLETTE_SITE) {
  emulator::Word word = 0;
  __builtin_memcpy(&word, &value, sizeof value);
  return unsigned(emulator::emulator_warp(emulator::Operation::match_any, mask, word, 0, BRIOLETTE_HERE));
}

#define BRIOLETTE_REDUCE(name, T, operation)                                                                           \
  inline T name(unsigned mask, T value, BRIOLETTE_SITE) {                                                              \
    return T(emulator::emulator_warp(emulator::Operation::operation, mask, unsigned(value), 0, BRIOLETTE_HERE));       \
  }
BRIOLETTE_REDUCE(__reduce_add_sync, unsigned, add)
BRIOLETTE_REDUCE(__reduce_add_sync, int, add)
BRIOLETTE_REDUCE(__reduce_min_sync, unsigned, minimum)
BRIOLETTE_REDUCE(__reduce_min_sync, int, signed_minimum)
BRIOLETTE_REDUCE(__reduce_max_sync, unsigned, maximum)
BRIOLETTE_REDUCE(__reduce_max_sync, int, signed_maximum)
BRIOLETTE_REDUCE(__reduce_and_sync, unsigned, bit_and)
BRIOLETTE_REDUCE(__reduce_or_sync, unsigned, bit_or)
BRIOLETTE_REDUCE(__reduce_xor_sync, unsigned, bit_xor)
#undef BRIOLETTE_REDUCE
