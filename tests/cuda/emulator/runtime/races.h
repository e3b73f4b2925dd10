// Finds accesses of two threads of a block to one byte, at least one of them a write, that nothing orders: neither
// __syncthreads nor, within a warp, __syncwarp. (Shuffles and votes promise no order of memory.) What the schedule was does
// not matter. Threads of different blocks are not compared.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "interface.h"

namespace emulator {

class Races {
 public:
  struct Access {
    uint64_t epoch = 0;    // counts barriers, over all blocks; 0 for no access
    uint32_t clock = 0;    // the lane's own count of __syncwarp
    uint16_t thread = 0;   // number in the block
    bool atomic = false;
    Word counter = 0;      // the instruction after it
  };

  void start_block(unsigned warps);
  void barrier() { epoch_++; }
  void sync_warp(unsigned warp, unsigned mask);

  // Notes an access by a thread; the earlier access that it races with, or null.
  const Access* note(Word address, unsigned bytes, bool write, bool atomic, unsigned thread, Word counter);

 private:
  static constexpr unsigned kPage = 1024;
  struct Byte {
    Access write;
    std::vector<Access> reads;  // since that write, in the current epoch
  };
  struct Page {
    Byte bytes[kPage];
  };
  // clock[i][j]: up to which count of lane j its accesses come before lane i's next one.
  struct Clocks {
    uint32_t clock[32][32];
  };

  Byte& byte(Word address);
  bool ordered(const Access& before, unsigned thread) const;

  uint64_t epoch_ = 0;
  std::vector<Clocks> warps_;
  std::unordered_map<Word, std::unique_ptr<Page>> pages_;
  Word last_number_ = ~0ull;
  Page* last_ = nullptr;
};

}  // namespace emulator
