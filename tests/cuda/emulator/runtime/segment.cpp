// Where a module's static shared memory lies: it is all of the module's thread-local storage.
#include <link.h>

#include "launch.h"

namespace emulator {
namespace {

struct Search {
  const char* anchor;
  Word before = 0, bytes = 0;
  bool found = false;
};

int visit(dl_phdr_info* module, size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  const char* start = static_cast<const char*>(module->dlpi_tls_data);
  if (!start) return 0;
  for (int i = 0; i < module->dlpi_phnum; i++) {
    const auto& segment = module->dlpi_phdr[i];
    if (segment.p_type != PT_TLS || search.anchor < start || search.anchor >= start + segment.p_memsz) continue;
    search.before = Word(search.anchor - start);
    search.bytes = segment.p_memsz;
    search.found = true;
    return 1;
  }
  return 0;
}

}  // namespace

// How many bytes of the thread-local segment around this address lie before it, and how many there are; 0 for success.
extern "C" EMULATOR_EXPORT int emulator_segment(const char* anchor, Word* before, Word* bytes) {
  Search search{anchor};
  dl_iterate_phdr(visit, &search);
  *before = search.before;
  *bytes = search.bytes;
  return search.found ? 0 : 1;
}

}  // namespace emulator
