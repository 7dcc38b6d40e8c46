#include "order.h"

#include <array>
#include <map>
#include <vector>

#include "memory.h"

namespace emulator::order {
namespace {

constexpr int kWarpSize = 32;

struct Segment {
  int64_t block;
  int thread;
  uint32_t block_epoch, warp_epoch;  // barriers passed
};

// Segments at whose beginning something is known, by block; none before another.
using Points = std::map<int64_t, std::vector<uint32_t>>;

struct Knowledge {
  Points seen;      // released by atomics that were met; acquired by the next fence
  Points acquired;  // what is before these points is ordered before what comes now
  Points fenced;    // what the next atomic releases

  void take(Knowledge* other);
};

struct Block {
  int64_t number = -1;
  uint32_t block_epoch = 0;
  std::vector<uint32_t> warp_epochs, current;  // current: by thread; 0: not begun
  // What all threads know, and what a warp or a thread knows besides.
  Knowledge shared;
  std::map<int, Knowledge> of_warp, of_thread;
};

std::vector<Segment> segments;
uint32_t first = kFirst;  // of this launch; what came before is ordered
std::array<Block, memory::kSlots> blocks;
Block* block = nullptr;
int running = -1;
std::map<const void*, Points> released;  // by the atomics on an address

const Segment& at(uint32_t s) { return segments[s - first]; }

uint32_t begin_segment() {
  const auto thread = static_cast<size_t>(running);
  block->current[thread] = first + static_cast<uint32_t>(segments.size());
  segments.push_back({block->number, running, block->block_epoch, block->warp_epochs[thread / kWarpSize]});
  return block->current[thread];
}

void add(Points* points, uint32_t point) {
  std::vector<uint32_t>& known = (*points)[at(point).block];
  for (const uint32_t p : known)
    if (p == point || before(point, kThread, p)) return;
  std::erase_if(known, [point](uint32_t p) { return before(p, kThread, point); });
  known.push_back(point);
}

void add(Points* to, const Points& from) {
  for (const auto& [number, points] : from)
    for (const uint32_t point : points) add(to, point);
}

void Knowledge::take(Knowledge* other) {
  add(&seen, other->seen);
  add(&acquired, other->acquired);
  add(&fenced, other->fenced);
  *other = {};
}

// Calls f with what the running thread, its warp and its block know.
template <typename F>
void for_each_knowledge(F&& f) {
  f(block->shared);
  if (const auto found = block->of_warp.find(running / kWarpSize); found != block->of_warp.end())
    f(found->second);
  if (const auto found = block->of_thread.find(running); found != block->of_thread.end()) f(found->second);
}

}  // namespace

void start_launch() {
  first += static_cast<uint32_t>(segments.size());
  segments.clear();
  released.clear();
}
void forget() {
  segments.clear();
  first = kFirst;
}
void start_block(int slot, int64_t number, int threads) {
  const size_t n = static_cast<size_t>(threads);
  Block& b = blocks[static_cast<size_t>(slot)];
  b = {};
  b.number = number;
  b.warp_epochs.assign((n + kWarpSize - 1) / kWarpSize, 0);
  b.current.assign(n, 0);
}
void enter_thread(int slot, int thread) {
  block = &blocks[static_cast<size_t>(slot)];
  running = thread;
}

void pass_block_barrier() {
  ++block->block_epoch;
  block->current.assign(block->current.size(), 0);
  for (auto* parts : {&block->of_warp, &block->of_thread}) {
    for (auto& [who, knowledge] : *parts) block->shared.take(&knowledge);
    parts->clear();
  }
}
void pass_warp_barrier(int warp) {
  ++block->warp_epochs[static_cast<size_t>(warp)];
  for (int i = warp * kWarpSize; i < (warp + 1) * kWarpSize; ++i) {
    if (static_cast<size_t>(i) < block->current.size()) block->current[static_cast<size_t>(i)] = 0;
    const auto found = block->of_thread.find(i);
    if (found == block->of_thread.end()) continue;
    block->of_warp[warp].take(&found->second);
    block->of_thread.erase(found);
  }
}

uint32_t fence() {
  Points acquired;
  for_each_knowledge([&](const Knowledge& k) {
    add(&acquired, k.acquired);
    add(&acquired, k.seen);
  });
  Knowledge& own = block->of_thread[running];
  add(&own.acquired, acquired);
  add(&own.fenced, acquired);
  const uint32_t point = begin_segment();
  add(&own.fenced, point);
  return point;
}

void atomic(const void* address) {
  Points& here = released[address];
  add(&block->of_thread[running].seen, here);
  for_each_knowledge([&](const Knowledge& k) { add(&here, k.fenced); });
}

uint32_t current() {
  const uint32_t s = block->current[static_cast<size_t>(running)];
  return s != 0 ? s : begin_segment();
}

bool before(uint32_t earlier, Scope scope, uint32_t later) {
  const Segment &then = at(earlier), &now = at(later);
  if (then.block != now.block || scope == kGrid) return false;
  if (then.block_epoch != now.block_epoch) return then.block_epoch < now.block_epoch;
  if (scope == kBlock || then.thread / kWarpSize != now.thread / kWarpSize) return false;
  if (then.warp_epoch != now.warp_epoch) return then.warp_epoch < now.warp_epoch;
  return scope == kThread && then.thread == now.thread && earlier < later;
}

bool ordered(uint32_t earlier, Scope scope) {
  if (!of_this_launch(earlier)) return true;
  const uint32_t now = current();
  if ((earlier == now && scope == kThread) || before(earlier, scope, now)) return true;
  bool found = false;
  for_each_knowledge([&](const Knowledge& k) {
    const auto points = k.acquired.find(at(earlier).block);
    if (points == k.acquired.end()) return;
    for (const uint32_t point : points->second) found = found || before(earlier, scope, point);
  });
  return found;
}

bool of_this_launch(uint32_t segment) { return segment >= first; }

Scope joined(uint32_t a, uint32_t b) {
  const Segment &one = at(a), &other = at(b);
  if (one.block != other.block) return kGrid;
  if (one.thread / kWarpSize != other.thread / kWarpSize) return kBlock;
  return one.thread == other.thread ? kThread : kWarp;
}

std::string describe(uint32_t segment) {
  return "block " + std::to_string(at(segment).block) + " thread " + std::to_string(at(segment).thread);
}

}  // namespace emulator::order
