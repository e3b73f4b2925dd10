// What -fsanitize=undefined calls where C++ leaves open what happens: instead of libubsan's printing, the launch ends
// with a report. The layouts are the compiler's: each record starts with the place in the source.
#include <cstdio>

#include "worker.h"

namespace emulator {
namespace {

struct Place {
  const char* file;
  unsigned line, column;
};

struct Type {
  unsigned short kind, info;
  char name[1];
};

struct Mismatch {
  Place place;
  const Type* type;
  unsigned char log_alignment, access;
};

struct Bounds {
  Place place;
  const Type* array;
  const Type* index;
};

constexpr const char* kAccesses[] = {"load of",
                                     "store to",
                                     "reference binding to",
                                     "member access within",
                                     "member call on",
                                     "constructor call on",
                                     "downcast of",
                                     "downcast of",
                                     "upcast of",
                                     "cast of"};
constexpr unsigned kAccessNames = sizeof kAccesses / sizeof *kAccesses;

[[noreturn]] void fail(const char* message, const Place& place, void* caller) {
  Worker::running()->fail(message, Site{int(place.line), place.file}, Word(caller) - 1);
}

}  // namespace

// A misaligned pointer that is only formed (to a member, say) is let pass, as on a GPU; the access through it is not.
extern "C" EMULATOR_EXPORT void __ubsan_handle_type_mismatch_v1(const Mismatch* what, Word address) {
  const char* access = what->access < kAccessNames ? kAccesses[what->access] : "access to";
  const Word alignment = Word(1) << what->log_alignment;
  if (address % alignment && what->access > 1) return;
  char message[400];
  if (address % alignment)
    snprintf(message, sizeof message, "misaligned: %s address 0x%llx as %s, which needs a multiple of %llu", access,
             address, what->type->name, alignment);
  else
    snprintf(message, sizeof message, "%s %s of type %s", access, address ? "an object too small" : "a null pointer",
             what->type->name);
  fail(message, what->place, __builtin_return_address(0));
}

extern "C" EMULATOR_EXPORT void __ubsan_handle_out_of_bounds(const Bounds* what, Word index) {
  char message[400];
  snprintf(message, sizeof message, "out of bounds: index %lld of %s", (long long)index, what->array->name);
  fail(message, what->place, __builtin_return_address(0));
}

#define EMULATOR_UNDEFINED(name, message)                                                                              \
  extern "C" EMULATOR_EXPORT void __ubsan_handle_##name(const Place* place) {                                          \
    fail(message, *place, __builtin_return_address(0));                                                                \
  }
EMULATOR_UNDEFINED(add_overflow, "a sum of signed integers overflows")
EMULATOR_UNDEFINED(sub_overflow, "a difference of signed integers overflows")
EMULATOR_UNDEFINED(mul_overflow, "a product of signed integers overflows")
EMULATOR_UNDEFINED(negate_overflow, "the negative of the least integer overflows")
EMULATOR_UNDEFINED(divrem_overflow, "integer division by zero, or of the least integer by -1")
EMULATOR_UNDEFINED(shift_out_of_bounds, "a shift by less than nothing, or by the width of its type or more")
EMULATOR_UNDEFINED(pointer_overflow, "a pointer leaves the address space")
EMULATOR_UNDEFINED(load_invalid_value, "a bool is neither 0 nor 1")
EMULATOR_UNDEFINED(builtin_unreachable, "code that must not be reached is reached")
EMULATOR_UNDEFINED(missing_return, "a function ends without returning a value")
#undef EMULATOR_UNDEFINED

}  // namespace emulator
