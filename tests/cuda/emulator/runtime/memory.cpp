#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace emulator {
namespace {

constexpr unsigned char kPoison = 0xff;  // NaN in every float format, -1 in integers

struct Allocation {
  Word bytes;     // asked for
  char* mapping;  // with both guards
  size_t length;
  bool freed;
  std::string name;
};

std::mutex lock;
std::map<Word, Allocation>& allocations() {
  static std::map<Word, Allocation> all;
  return all;
}

// Wide guards also catch an index that is off by a row. They are address space, not memory.
constexpr size_t kGuard = 1 << 20;

size_t page() { return size_t(sysconf(_SC_PAGESIZE)); }

// Of AddressSanitizer, where the process was started with it: then what alignment leaves over cannot be touched either.
extern "C" __attribute__((weak)) void __asan_poison_memory_region(const volatile void* start, size_t size);
extern "C" __attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* start, size_t size);

// The first byte around an allocation, in its own pages, that no longer holds the poison; 0 where all do.
Word trespassed(Word address, const Allocation& one) {
  const auto* start = reinterpret_cast<const unsigned char*>(one.mapping + kGuard);
  const auto* end = reinterpret_cast<const unsigned char*>(one.mapping + one.length - kGuard);
  const auto* mine = reinterpret_cast<const unsigned char*>(address);
  for (const auto* p = start; p < end; p++) {
    if (p == mine) p += one.bytes;
    if (p < end && *p != kPoison) return reinterpret_cast<Word>(p);
  }
  return 0;
}

}  // namespace

void describe_address(Word address, char* message, size_t size) {
  for (const auto& [start, one] : allocations()) {
    const Word low = reinterpret_cast<Word>(one.mapping), high = low + one.length;
    if (address < low || address >= high) continue;
    const char* verb = one.freed ? "use after free: access" : "out of bounds: access";
    const long long offset = (long long)(address - start);
    if (one.freed && offset >= 0 && Word(offset) < one.bytes)
      snprintf(message, size, "%s to byte %lld of %s (%llu bytes)", verb, offset, one.name.c_str(), one.bytes);
    else if (offset < 0)
      snprintf(message, size, "%s %lld bytes before the start of %s (%llu bytes)", verb, -offset, one.name.c_str(),
               one.bytes);
    else
      snprintf(message, size, "%s %lld bytes past the end of %s (%llu bytes)", verb, offset - (long long)one.bytes,
               one.name.c_str(), one.bytes);
    return;
  }
  snprintf(message, size, "out of bounds: access to address 0x%llx, which is in no allocation", address);
}

extern "C" {

// An address that is a multiple of `align`, as near to the guard page behind it as that allows; 0 where memory is out.
EMULATOR_EXPORT Word emulator_allocate(Word bytes, Word align, const char* name) {
  const size_t p = page(), room = (bytes + align - 1) / align * align;
  const size_t inner = (room + p - 1) / p * p + (room ? 0 : p), length = inner + 2 * kGuard;
  void* memory = mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return 0;
  char* mapping = static_cast<char*>(memory);
  mprotect(mapping + kGuard, inner, PROT_READ | PROT_WRITE);
  memset(mapping + kGuard, kPoison, inner);
  const Word address = reinterpret_cast<Word>(mapping + kGuard + inner - room);
  if (__asan_poison_memory_region) {
    __asan_poison_memory_region(mapping + kGuard, inner);
    __asan_unpoison_memory_region(reinterpret_cast<void*>(address), bytes);
  }
  std::lock_guard<std::mutex> guard(lock);
  allocations()[address] = Allocation{bytes, mapping, length, false, name};
  return address;
}

// The first byte beside the allocation, in its pages, that was written to; 0 where there is none, 1 for no allocation.
EMULATOR_EXPORT Word emulator_check(Word address) {
  std::lock_guard<std::mutex> guard(lock);
  const auto found = allocations().find(address);
  return found == allocations().end() || found->second.freed ? 1 : trespassed(address, found->second);
}

// Gives the pages back to the system. Where `keep` is not 0 their addresses stay taken, so that a later use is
// reported.
EMULATOR_EXPORT int emulator_free(Word address, int keep) {
  std::lock_guard<std::mutex> guard(lock);
  const auto found = allocations().find(address);
  if (found == allocations().end() || (found->second.freed && keep)) return 1;
  Allocation& one = found->second;
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(one.mapping, one.length);
  if (keep) {
    one.freed = true;
    mmap(one.mapping, one.length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  } else {
    munmap(one.mapping, one.length);
    allocations().erase(found);
  }
  return 0;
}
}

}  // namespace emulator
