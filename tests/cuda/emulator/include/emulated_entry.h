// How a launch calls a kernel: from an array of 64-bit words, each cast to the type of its parameter.
#pragma once

namespace emulator {

template <class T>
struct Parameter;
template <class T>
struct Parameter<T*> {
  static constexpr char kind = 'P';
  static T* from(Word word) { return reinterpret_cast<T*>(word); }
};
#define BRIOLETTE_SCALAR(T, code)                                                                                      \
  template <>                                                                                                          \
  struct Parameter<T> {                                                                                                \
    static constexpr char kind = code;                                                                                 \
    static T from(Word word) {                                                                                         \
      T value;                                                                                                         \
      __builtin_memcpy(&value, &word, sizeof value);                                                                   \
      return value;                                                                                                    \
    }                                                                                                                  \
  };
// The codes of Python's struct module.
BRIOLETTE_SCALAR(int, 'i')
BRIOLETTE_SCALAR(unsigned, 'I')
BRIOLETTE_SCALAR(long, 'q')
BRIOLETTE_SCALAR(unsigned long, 'Q')
BRIOLETTE_SCALAR(long long, 'q')
BRIOLETTE_SCALAR(unsigned long long, 'Q')
BRIOLETTE_SCALAR(float, 'f')
BRIOLETTE_SCALAR(double, 'd')
#undef BRIOLETTE_SCALAR

template <unsigned long... I>
struct Indices {};
template <class F>
struct Entry;
template <class... P>
struct Entry<void (*)(P...)> {
  static constexpr char kinds[] = {Parameter<P>::kind..., 0};
  template <unsigned long... I>
  static inline __attribute__((always_inline)) void call(void (*kernel)(P...), const Word* words, Indices<I...>) {
    kernel(Parameter<P>::from(words[I])...);
  }
  static inline __attribute__((always_inline)) void call(void (*kernel)(P...), const Word* words) {
    call(kernel, words, Indices<__integer_pack(sizeof...(P))...>{});
  }
};

}  // namespace emulator

// An address in the module's static shared memory, which is thread-local: each worker has its own.
static thread_local char emulated_anchor_byte;
extern "C" __attribute__((visibility("default"), used)) inline char* emulated_anchor() { return &emulated_anchor_byte; }
