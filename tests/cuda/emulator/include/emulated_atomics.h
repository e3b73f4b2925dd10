// Atomic functions. They are atomic here too, for blocks may run on several threads of the operating system.
#pragma once

template <class T, class Change>
inline T emulated_update(T* address, Change change) {
  T before, after;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  do after = change(before);
  while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

#define BRIOLETTE_ARITHMETIC(T)                                                                                        \
  inline T atomicAdd(T* p, T v) {                                                                                      \
    return emulated_update(p, [v](T old) { return (T)(old + v); });                                                    \
  }                                                                                                                    \
  inline T atomicExch(T* p, T v) {                                                                                     \
    return emulated_update(p, [v](T) { return v; });                                                                   \
  }
#define BRIOLETTE_INTEGERS(T)                                                                                          \
  BRIOLETTE_ARITHMETIC(T)                                                                                              \
  inline T atomicSub(T* p, T v) { return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED); }                                 \
  inline T atomicAnd(T* p, T v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }                                 \
  inline T atomicOr(T* p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }                                   \
  inline T atomicXor(T* p, T v) { return __atomic_fetch_xor(p, v, __ATOMIC_RELAXED); }                                 \
  inline T atomicMax(T* p, T v) {                                                                                      \
    return emulated_update(p, [v](T old) { return old > v ? old : v; });                                               \
  }                                                                                                                    \
  inline T atomicMin(T* p, T v) {                                                                                      \
    return emulated_update(p, [v](T old) { return old < v ? old : v; });                                               \
  }                                                                                                                    \
  inline T atomicCAS(T* p, T expected, T v) {                                                                          \
    __atomic_compare_exchange(p, &expected, &v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                            \
    return expected;                                                                                                   \
  }
BRIOLETTE_INTEGERS(int)
BRIOLETTE_INTEGERS(unsigned)
BRIOLETTE_INTEGERS(unsigned long long)
BRIOLETTE_ARITHMETIC(float)
BRIOLETTE_ARITHMETIC(double)
#undef BRIOLETTE_INTEGERS
#undef BRIOLETTE_ARITHMETIC

inline unsigned short atomicCAS(unsigned short* p, unsigned short expected, unsigned short v) {
  __atomic_compare_exchange(p, &expected, &v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
// Counts up to the limit, then starts at 0; counts down from it likewise.
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return emulated_update(p, [limit](unsigned old) { return old >= limit ? 0u : old + 1; });
}
inline unsigned atomicDec(unsigned* p, unsigned limit) {
  return emulated_update(p, [limit](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
}
