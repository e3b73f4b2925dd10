// Warp operations: each completes when all lanes that its mask names have come to it.
#include <cstdio>

#include "worker.h"

namespace emulator {
namespace {

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::shuffle: return "__shfl_*_sync";
    case Operation::ballot: return "__ballot_sync";
    case Operation::any: return "__any_sync";
    case Operation::all: return "__all_sync";
    case Operation::sync_warp: return "__syncwarp";
    case Operation::add: return "__reduce_add_sync";
    case Operation::minimum:
    case Operation::signed_minimum: return "__reduce_min_sync";
    case Operation::maximum:
    case Operation::signed_maximum: return "__reduce_max_sync";
    case Operation::bit_and: return "__reduce_and_sync";
    case Operation::bit_or: return "__reduce_or_sync";
    case Operation::bit_xor: return "__reduce_xor_sync";
    case Operation::match_any: return "__match_any_sync";
    case Operation::collective: return "an operation of the whole warp";
    default: return "no operation";
  }
}

// The next lane of a mask, which loses it.
unsigned take(unsigned& mask) {
  const unsigned lane = unsigned(__builtin_ctz(mask));
  mask &= mask - 1;
  return lane;
}

Word combine(Operation operation, Word a, Word b) {
  const unsigned x = unsigned(a), y = unsigned(b);
  switch (operation) {
    case Operation::add: return x + y;
    case Operation::minimum: return x < y ? x : y;
    case Operation::maximum: return x > y ? x : y;
    case Operation::signed_minimum: return int(x) < int(y) ? x : y;
    case Operation::signed_maximum: return int(x) > int(y) ? x : y;
    case Operation::bit_and: return x & y;
    case Operation::bit_or: return x | y;
    default: return x ^ y;
  }
}

}  // namespace

void Worker::disown(Operation operation, unsigned mask, Site site) {
  char message[200];
  snprintf(message, sizeof message, "%s is called by lane %u, which its mask 0x%08x does not name", name_of(operation),
           emulator_thread->lane, mask);
  fail(message, site);
}

EMULATOR_INLINE Word Worker::warp_operation(Operation operation, unsigned mask, Word value, unsigned source,
                                            Collective function, Site site) {
  Lane& lane = *static_cast<Lane*>(emulator_thread);
  Warp& warp = *lane.warp;
  const unsigned i = lane.lane;
  warp.site[i] = site;
  if (!(mask >> i & 1)) disown(operation, mask, site);
  warp.operation[i] = operation;
  warp.mask[i] = mask;
  warp.value[i] = value;
  warp.source[i] = source;
  warp.collective[i] = function;
  warp.waiting |= 1u << i;
  park(lane);
  return warp.result[i];
}

extern "C" {
Word emulator_warp(Operation operation, unsigned mask, Word value, unsigned source, Site site) {
  return running_worker->warp_operation(operation, mask, value, source, nullptr, site);
}

void emulator_collective(Collective function, void* operand, Site site) {
  const Word value = reinterpret_cast<Word>(operand);
  running_worker->warp_operation(Operation::collective, ~0u, value, 0, function, site);
}
}

// Completes each operation whose lanes have all come; whether there was one. A mask that can never be met is reported.
bool Worker::resolve(Warp& warp) {
  bool moved = false;
  unsigned left = warp.waiting;
  while (left && !failed_) {
    const unsigned first = unsigned(__builtin_ctz(left));
    const unsigned mask = warp.mask[first];
    if (const unsigned gone = mask & (warp.exited | ~warp.exists)) {
      const unsigned lane = unsigned(__builtin_ctz(gone));
      char message[200];
      snprintf(message, sizeof message, "%s has mask 0x%08x, which names lane %u, and that lane %s",
               name_of(warp.operation[first]), mask, lane, warp.exists >> lane & 1 ? "has returned" : "does not exist");
      report(message, warp.lanes[first], warp.site[first]);
      return false;
    }
    unsigned together = 0;
    for (unsigned rest = mask & left; rest;) {
      const unsigned i = take(rest);
      if (warp.mask[i] == mask && warp.operation[i] == warp.operation[first] &&
          warp.site[i].line == warp.site[first].line)
        together |= 1u << i;
    }
    left &= ~together;
    if (together == mask && complete(warp, mask)) {
      warp.waiting &= ~mask;
      warp.ready |= mask;
      moved = true;
    }
  }
  return moved;
}

// Gives each lane of the mask its result.
bool Worker::complete(Warp& warp, unsigned mask) {
  const Operation operation = warp.operation[__builtin_ctz(mask)];
  if (operation == Operation::shuffle) {
    for (unsigned rest = mask; rest;) {
      const unsigned i = take(rest), source = warp.source[i];
      if (!(mask >> source & 1)) {
        char message[200];
        snprintf(message, sizeof message, "__shfl_*_sync reads lane %u, which its mask 0x%08x does not name", source,
                 mask);
        report(message, warp.lanes[i], warp.site[i]);
        return false;
      }
      warp.result[i] = warp.value[source];
    }
    return true;
  }
  if (operation == Operation::match_any) {
    for (unsigned rest = mask; rest;) {
      const unsigned i = take(rest);
      unsigned equal = 0;
      for (unsigned others = mask; others;) {
        const unsigned j = take(others);
        if (warp.value[j] == warp.value[i]) equal |= 1u << j;
      }
      warp.result[i] = equal;
    }
    return true;
  }
  if (operation == Operation::collective) {
    void* operands[kWarp];
    for (unsigned i = 0; i < kWarp; i++) operands[i] = reinterpret_cast<void*>(warp.value[i]);
    collective_ = true;
    warp.collective[0](operands);
    collective_ = false;
    return true;
  }
  if (operation == Operation::sync_warp) {
    if (races_) races_->sync_warp(unsigned(&warp - warps_.data()), mask);
    return true;
  }
  unsigned votes = 0;
  Word total = warp.value[__builtin_ctz(mask)];
  for (unsigned rest = mask; rest;) {
    const unsigned i = take(rest);
    if (warp.value[i]) votes |= 1u << i;
    if (rest) total = combine(operation, total, warp.value[__builtin_ctz(rest)]);
  }
  Word result = total;
  if (operation == Operation::ballot) result = votes;
  if (operation == Operation::any) result = votes != 0;
  if (operation == Operation::all) result = votes == mask;
  for (unsigned rest = mask; rest;) warp.result[take(rest)] = result;
  return true;
}

// No lane can go on, and not all wait at one barrier: names a lane that waits in vain and what the other one does.
void Worker::explain_deadlock() {
  for (Warp& warp : warps_) {
    if (!warp.waiting) continue;
    const unsigned i = unsigned(__builtin_ctz(warp.waiting));
    for (unsigned rest = warp.mask[i]; rest;) {
      const unsigned j = take(rest);
      const bool barrier = warp.at_barrier >> j & 1;
      const bool same = !barrier && warp.mask[j] == warp.mask[i] && warp.operation[j] == warp.operation[i] &&
                        warp.site[j].line == warp.site[i].line;
      if (same) continue;
      char message[400], other[80] = "__syncthreads";
      if (!barrier) snprintf(other, sizeof other, "%s with mask 0x%08x", name_of(warp.operation[j]), warp.mask[j]);
      snprintf(message, sizeof message, "%s with mask 0x%08x waits for lane %u, which waits in %s at %s:%d",
               name_of(warp.operation[i]), warp.mask[i], j, other, warp.site[j].file, warp.site[j].line);
      report(message, warp.lanes[i], warp.site[i]);
      return;
    }
  }
}

}  // namespace emulator
