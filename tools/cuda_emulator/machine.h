// The state of a launch under way, and who runs next: what the emulator's two halves share.
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "memory.h"

namespace emulator {

using memory::kSlots;

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr size_t kDefaultShared = size_t{48} << 10;

enum class State { kReady, kAtBarrier, kInCollective, kDone };

struct Thread {
  State state = State::kDone;
  uint3 index;
  // what it waits for
  Barrier barrier;
  int predicate;
  WarpOp op;
  unsigned mask;
  uint64_t value;
  int argument;
  Location where;
};

struct SharedBlock {
  const void* tag;
  void* address;
  size_t bytes;
};

// A block under way.
struct Block {
  bool active = false;
  uint3 index{};
  std::array<Thread, kMostThreads> threads;
  std::vector<int> ready;     // threads that can go on
  uint64_t sleeps_until = 0;  // in Machine::switches; the block goes on earlier if no other can
  int alive = 0, waiting = 0, barrier_result = 0;
  std::vector<SharedBlock> shared;
};

struct Machine {
  uint3 thread_index{}, block_index{};
  dim3 block_dim, grid_dim;
  uint64_t random = 1;

  std::array<Block, kSlots> blocks;
  int slot = 0, thread = -1, threads = 0;  // the running thread, and how many a block has
  std::vector<uint64_t> order;             // of the grid's blocks
  size_t started = 0;
  uint64_t switches = 0;
  bool failed = false;

  const std::function<void()>* body = nullptr;
  size_t dynamic_bytes = 0;
  std::map<const void*, size_t> allowed_shared;
};

extern Machine machine;

inline Block& block() { return machine.blocks[static_cast<size_t>(machine.slot)]; }
inline Thread& running() { return block().threads[static_cast<size_t>(machine.thread)]; }

void fail(const std::string& message);
std::string place(const Location& where);

// Goes on with some thread that can, most often of the same block; with the scheduler if there is none.
void pass_on();
void make_ready(Block& of, int thread);
void release_barrier_if_complete();
// From the first block of the grid to the last.
void run_blocks();

}  // namespace emulator
