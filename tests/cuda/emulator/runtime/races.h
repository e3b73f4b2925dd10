// Finds accesses of two threads to one byte, at least one of them a write, that nothing orders. What the schedule was does
// not matter.
//
// Within a block __syncthreads orders, and within a warp __syncwarp. (Shuffles and votes promise no order of memory.)
// Nothing orders blocks of a launch but __threadfence: what a block did before it is taken for seen by later blocks, as
// where the last block to finish collects what the others left.
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
    uint64_t epoch = 0;    // counts barriers, over all blocks and launches; 0 for no access
    uint32_t clock = 0;    // the lane's own count of __syncwarp
    uint16_t thread = 0;   // number in the block
    bool atomic = false;
    uint64_t tick = 0;     // counts accesses
    Word counter = 0;      // the instruction
    uint3 block{};
  };

  void start_launch() { launch_epoch_ = epoch_ + 1; }
  void start_block(uint3 block, unsigned warps);
  void barrier() { epoch_++; }
  void sync_warp(unsigned warp, unsigned mask);

  void fence() { fences_.back().tick = ++tick_; }

  // Notes an access by a thread, whose `shared` memory is its block's alone; the access that it races with, or null.
  const Access* note(Word address, unsigned bytes, bool shared, bool write, bool atomic, unsigned thread, Word counter);

 private:
  static constexpr unsigned kPage = 1024;
  struct Byte {
    Access write;
    Access read, earlier;       // since that write: the last read, and the last one of an epoch before its own
    std::vector<Access> reads;  // others of the epoch of `read`
  };
  struct Page {
    Byte bytes[kPage];
  };
  // clock[i][j]: up to which count of lane j its accesses come before lane i's next one.
  struct Clocks {
    uint32_t clock[32][32];
  };

  // A block of this launch: its first epoch, and its last fence.
  struct Fence {
    uint64_t epoch, tick;
  };

  Byte& byte(Word address);
  bool ordered(const Access& before, const Access& now, bool shared) const;

  uint3 block_{};
  uint64_t epoch_ = 0, launch_epoch_ = 0, tick_ = 0;
  std::vector<Fence> fences_;
  std::vector<Clocks> warps_;
  std::unordered_map<Word, std::unique_ptr<Page>> pages_;
  Word last_number_ = ~0ull;
  Page* last_ = nullptr;
};

}  // namespace emulator
