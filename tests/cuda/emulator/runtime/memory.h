// Device memory of the emulator: every allocation ends at a page that may not be touched, and starts after one.
#pragma once
#include <cstddef>

#include "launch.h"

namespace emulator {

// Writes what lies at or near an address that a kernel may not touch. Takes no lock that an interrupted allocation
// could hold: kernels do not allocate.
void describe_address(Word address, char* message, size_t size);

}  // namespace emulator
