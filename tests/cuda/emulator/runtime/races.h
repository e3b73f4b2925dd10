// Finds accesses of two threads to one byte, at least one of them a write, that nothing orders. What the schedule was
// does not matter.
//
// Within a block __syncthreads orders, and within a warp __syncwarp. (Shuffles and votes promise no order of memory.)
// Nothing orders blocks of a launch but __threadfence: what a block did before it is taken for seen by later blocks, as
// where the last block to finish collects what the others left.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "interface.h"

namespace emulator {

class Races {
 public:
  // Small, for there are three for each word.
  struct Access {
    uint32_t epoch = 0;   // counts barriers, over all blocks and launches; 0 for no access
    uint32_t tick = 0;    // counts accesses of a launch
    uint32_t clock = 0;   // the lane's own count of __syncwarp
    int32_t counter = 0;  // the instruction, from the kernel's entry on
    uint16_t thread = 0;  // number in the block
    bool atomic = false;
  };

  void start_launch(Word entry);
  void start_block(uint3 block, unsigned warps);
  void barrier() { epoch_++; }
  void sync_warp(unsigned warp, unsigned mask);

  void fence() { blocks_.back().fence = ++tick_; }
  uint3 block_of(const Access& access) const { return block_at(access.epoch).index; }
  Word counter_of(const Access& access) const { return entry_ + Word(int64_t(access.counter)); }

  // Notes an access by a thread, whose `shared` memory is its block's alone; the access that it races with, or null.
  const Access* note(Word address, unsigned bytes, bool shared, bool write, bool atomic, unsigned thread, Word counter);

 private:
  static constexpr unsigned kWord = 4, kPage = 1024;  // bytes
  struct History {
    Access write;
    Access read, earlier;       // since that write: the last read, and the last one of an epoch before its own
    std::vector<Access> reads;  // others of the epoch of `read`
  };
  // Most accesses are of whole words; what touches a part of one splits it for good.
  struct Cell {
    History whole;
    std::unique_ptr<std::array<History, kWord>> bytes;
  };
  struct Page {
    Cell cells[kPage / kWord];
  };
  // clock[i][j]: up to which count of lane j its accesses come before lane i's next one.
  struct Clocks {
    uint32_t clock[32][32];
  };

  // A block of this launch.
  struct Started {
    uint32_t epoch;  // its first one
    uint32_t fence;  // the tick of its last fence, or 0
    uint3 index;
  };

  Cell& cell(Word address);
  const Access* touch(History& one, const Access& now, bool shared, bool write) const;
  bool ordered(const Access& before, const Access& now, bool shared) const;
  const Started& block_at(uint32_t epoch) const;

  Word entry_ = 0;
  uint32_t epoch_ = 0, launch_epoch_ = 0, tick_ = 0;
  std::vector<Started> blocks_;
  std::vector<Clocks> warps_;
  std::unordered_map<Word, std::unique_ptr<Page>> pages_;
  // Pages found lately, by the low bits of their numbers.
  static constexpr unsigned kLately = 64;
  Word lately_[kLately];
  Page* found_[kLately] = {};
};

}  // namespace emulator
