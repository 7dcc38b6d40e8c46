// Runs a grid on one CPU thread. A few blocks are under way at a time; their threads are fibers. A fiber runs
// until it reaches a barrier or a warp collective (or now and then an atomic or any access), and then another
// goes on, of the same block or of another. When everyone who has to has arrived, all of them may go on.
// Every choice is drawn from a seed: which blocks come first, and who goes on.
//
// Four builds, of which tests/cpp/emulated.py says how they are compiled. Checked: memory is checker.cpp's.
// Sanitized: the address and undefined-behavior sanitizers watch; device and shared memory are exact heap
// blocks. Device: for the emulated device, nothing watches. Counted: counters.cpp counts.
#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <vector>

#include "cuda_runtime.h"
#include "fibers.h"
#include "memory.h"
#include "reports.h"

namespace emulator {
namespace {

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

Machine machine;

Block& block() { return machine.blocks[static_cast<size_t>(machine.slot)]; }
Thread& running() { return block().threads[static_cast<size_t>(machine.thread)]; }

void fail(const std::string& message) {
  reports::add(message);
  machine.failed = true;
}

std::string place(const Location& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

// ---- who runs ---------------------------------------------------------------------------------------------

int fiber_of(int slot, int thread) { return thread < 0 ? fibers::kScheduler : slot * kMostThreads + thread; }

// Leaves the running thread, or the scheduler (thread -1), for another.
void go_on_with(int slot, int thread) {
  const int from = fiber_of(machine.slot, machine.thread), to = fiber_of(slot, thread);
  if (from == to) return;
  const bool done = machine.thread >= 0 && running().state == State::kDone;
  machine.slot = slot;
  machine.thread = thread;
  if (thread >= 0) {
    machine.thread_index = running().index;
    machine.block_index = block().index;
    memory::enter_thread(slot, thread);
  } else {
    memory::enter_host();
  }
  fibers::switch_to(from, to, done);
}

// Without memory of their own: a thread passes on millions of times.
struct Slots {
  std::array<int, kSlots> which;
  size_t count = 0;
  void add(int slot) { which[count++] = slot; }
  bool have(int slot) const {
    return std::find(which.data(), which.data() + count, slot) != which.data() + count;
  }
};

// Goes on with some thread that can, most often of the same block; with the scheduler if there is none.
void pass_on() {
  const uint64_t now = ++machine.switches;
  Slots awake, asleep;
  for (int s = 0; s < kSlots; ++s) {
    const Block& b = machine.blocks[static_cast<size_t>(s)];
    if (!b.ready.empty()) (b.sleeps_until > now ? asleep : awake).add(s);
  }
  if (machine.failed || awake.count + asleep.count == 0) return go_on_with(machine.slot, -1);
  const Slots& slots = awake.count == 0 ? asleep : awake;
  const bool stays = slots.have(machine.slot) && draw(8) != 0;
  const int slot = stays ? machine.slot : slots.which[draw(slots.count)];
  std::vector<int>& ready = machine.blocks[static_cast<size_t>(slot)].ready;
  std::swap(ready[draw(ready.size())], ready.back());
  const int thread = ready.back();
  ready.pop_back();
  go_on_with(slot, thread);
}

void make_ready(Block& of, int thread) {
  of.threads[static_cast<size_t>(thread)].state = State::kReady;
  of.ready.push_back(thread);
}

void release_barrier_if_complete() {
  Block& b = block();
  if (b.waiting == 0 || b.waiting < b.alive) return;
  int result = 0;
  const Thread* first = nullptr;
  for (int i = 0; i < machine.threads; ++i) {
    const Thread& t = b.threads[static_cast<size_t>(i)];
    if (t.state != State::kAtBarrier) continue;
    if (first == nullptr) first = &t;
    if (t.where.line() != first->where.line() || t.barrier != first->barrier)
      return fail("threads of a block wait at different barriers: " + place(first->where) + " and " +
                  place(t.where));
    result |= t.predicate;
  }
  b.barrier_result = result;
  b.waiting = 0;
  memory::pass_block_barrier();
  for (int i = 0; i < machine.threads; ++i)
    if (b.threads[static_cast<size_t>(i)].state == State::kAtBarrier) make_ready(b, i);
}

void thread_main() {
  fibers::arrive();
  for (;;) {  // one turn for each thread of a grid that this fiber is
    (*machine.body)();
    running().state = State::kDone;
    if (--block().alive == 0) {
      go_on_with(machine.slot, -1);  // the scheduler gives the slot to the next block
    } else {
      release_barrier_if_complete();
      pass_on();
    }
  }
}

void start_block(int slot) {
  const uint64_t number = machine.order[machine.started++];
  const dim3 grid = machine.grid_dim, of_block = machine.block_dim;
  Block& b = machine.blocks[static_cast<size_t>(slot)];
  b.index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
             static_cast<unsigned>(number / grid.x / grid.y)};
  b.active = true;
  b.sleeps_until = 0;
  b.alive = machine.threads;
  b.waiting = 0;
  memory::start_block(slot, static_cast<int64_t>(number), machine.threads);
  for (int i = 0; i < machine.threads; ++i) {
    const unsigned n = static_cast<unsigned>(i);
    b.threads[n].index = {n % of_block.x, n / of_block.x % of_block.y, n / (of_block.x * of_block.y)};
    fibers::start(fiber_of(slot, i), thread_main);
    make_ready(b, i);
  }
}

void end_block(int slot) {
  Block& b = machine.blocks[static_cast<size_t>(slot)];
  b.active = false;
  b.ready.clear();
  b.shared.clear();
  memory::end_block(slot);
}

void report_stuck() {
  for (const Block& b : machine.blocks) {
    for (int i = 0; i < machine.threads && b.active; ++i) {
      const Thread& t = b.threads[static_cast<size_t>(i)];
      if (t.state != State::kAtBarrier && t.state != State::kInCollective) continue;
      const char* kind = t.state == State::kAtBarrier ? "__syncthreads" : "a warp collective";
      return fail("deadlock: thread " + std::to_string(i) + " waits for ever in " + kind + " at " +
                  place(t.where));
    }
  }
}

void run_blocks() {
  size_t ended = 0;
  for (int s = 0; s < kSlots && machine.started < machine.order.size(); ++s) start_block(s);
  while (ended < machine.order.size() && !machine.failed) {
    const size_t before = ended;
    pass_on();
    for (int s = 0; s < kSlots && !machine.failed; ++s) {
      const Block& b = machine.blocks[static_cast<size_t>(s)];
      if (!b.active || b.alive > 0) continue;
      end_block(s);
      ++ended;
      if (machine.started < machine.order.size()) start_block(s);
    }
    if (ended == before && !machine.failed) report_stuck();
  }
  for (int s = 0; s < kSlots; ++s)
    if (machine.blocks[static_cast<size_t>(s)].active) end_block(s);
}

// The lane whose value a shuffle gives to `lane`.
int source_lane(WarpOp shuffle, int lane, int argument) {
  switch (shuffle) {
    case WarpOp::kShuffleXor:
      return lane ^ argument;
    case WarpOp::kShuffleUp:
      return lane - argument >= 0 ? lane - argument : lane;
    case WarpOp::kShuffleDown:
      return lane + argument < kWarp ? lane + argument : lane;
    default:
      return argument & (kWarp - 1);
  }
}

}  // namespace

void seed(uint64_t value) { machine.random = value * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull; }

uint64_t draw(uint64_t bound) {
  machine.random ^= machine.random << 13;
  machine.random ^= machine.random >> 7;
  machine.random ^= machine.random << 17;
  return machine.random % bound;
}

void yield(uint64_t most) {
  make_ready(block(), machine.thread);
  if (most > 0) block().sleeps_until = machine.switches + draw(most);
  pass_on();
}

// ---- called by kernels ------------------------------------------------------------------------------------

int block_barrier(Barrier kind, int predicate, Location where) {
  Thread& t = running();
  t.barrier = kind;
  t.predicate = predicate != 0;
  t.where = where;
  t.state = State::kAtBarrier;
  ++block().waiting;
  release_barrier_if_complete();
  pass_on();
  return block().barrier_result;
}

uint64_t warp_collective(WarpOp op, unsigned mask, uint64_t value, int argument, Location where) {
  Block& b = block();
  const int lane = machine.thread % kWarp, base = machine.thread - lane;
  Thread* const warp = &b.threads[static_cast<size_t>(base)];
  Thread& self = warp[lane];
  self.op = op;
  self.mask = mask;
  self.value = value;
  self.argument = argument;
  self.where = where;
  self.state = State::kInCollective;
  if ((mask >> lane & 1u) == 0) fail("a lane outside the mask calls a warp collective at " + place(where));

  bool complete = true;
  for (int i = 0; i < kWarp && complete; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    complete = false;
    if (base + i >= machine.threads || warp[i].state == State::kDone) {
      fail("the mask of a warp collective names a lane that has exited, at " + place(where));
    } else if (warp[i].state == State::kInCollective) {
      complete = warp[i].mask == mask && warp[i].op == op && warp[i].where.line() == where.line();
      if (!complete) {
        fail("lanes of one mask wait in different warp collectives: " + place(where) + " and " +
             place(warp[i].where));
      }
    }
  }
  if (!complete) {
    pass_on();
    return self.value;
  }

  uint64_t values[kWarp] = {}, ballot = 0, most = 0;
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    values[i] = warp[i].value;
    if (values[i] != 0) ballot |= uint64_t{1} << i;
    most = std::max(most, values[i]);
  }
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    if (op == WarpOp::kBallot || op == WarpOp::kReduceMax) {
      warp[i].value = op == WarpOp::kBallot ? ballot : most;
    } else if (op != WarpOp::kSync) {
      const int source = source_lane(op, i, warp[i].argument);
      if ((mask >> source & 1u) == 0) fail("a shuffle reads a lane outside its mask, at " + place(where));
      warp[i].value = values[source];
    }
    make_ready(b, base + i);
  }
  if (op == WarpOp::kSync && mask != 0xffffffffu)
    fail("__syncwarp of a part of a warp is not emulated, at " + place(where));
  memory::pass_collective(base / kWarp, op == WarpOp::kSync);
  pass_on();
  return self.value;
}

void* shared_memory(const void* tag, size_t bytes, size_t alignment) {
  size_t total = bytes;
  std::vector<SharedBlock>& shared = block().shared;
  for (const SharedBlock& s : shared) {
    if (s.tag == tag) return s.address;
    total += s.bytes;
  }
  if (total > static_cast<size_t>(kMostShared))
    fail("a block uses more shared memory than the smallest GPU has");
  shared.push_back({tag, memory::allocate_shared(machine.slot, bytes, alignment), bytes});
  return shared.back().address;
}

void* dynamic_shared_memory() {
  static const char tag = 0;
  return shared_memory(&tag, machine.dynamic_bytes, 16);
}

void fence() { memory::fence(); }
void atomic_access(const void* address, size_t bytes) {
  memory::atomic_access(address, bytes, __builtin_return_address(0));
}

// ---- called by launchers ----------------------------------------------------------------------------------

cudaError_t allow_dynamic_shared(const void* kernel, int bytes) {
  if (bytes < 0 || bytes > kMostShared) return cudaErrorInvalidValue;
  machine.allowed_shared[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t run(const void* kernel, const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const dim3 grid = config.gridDim, of_block = config.blockDim;
  const uint64_t threads = uint64_t{of_block.x} * of_block.y * of_block.z;
  if (threads == 0 || threads > kMostThreads || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  const auto allowed = machine.allowed_shared.find(kernel);
  const size_t limit = allowed == machine.allowed_shared.end() ? kDefaultShared : allowed->second;
  if (config.dynamicSmemBytes > limit) return cudaErrorInvalidValue;

  fibers::prepare(kSlots * kMostThreads);
  const size_t reported = reports::count();
  machine.grid_dim = grid;
  machine.block_dim = of_block;
  machine.threads = static_cast<int>(threads);
  machine.dynamic_bytes = config.dynamicSmemBytes;
  machine.body = &thread;
  machine.failed = false;
  machine.started = 0;
  machine.order.resize(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(machine.order.begin(), machine.order.end(), 0);
  for (size_t i = machine.order.size(); i > 1; --i) std::swap(machine.order[i - 1], machine.order[draw(i)]);

  memory::start_launch(kernel);
  run_blocks();
  memory::end_launch();
  return reports::count() == reported ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace emulator

const uint3& threadIdx = emulator::machine.thread_index;
const uint3& blockIdx = emulator::machine.block_index;
const dim3& blockDim = emulator::machine.block_dim;
const dim3& gridDim = emulator::machine.grid_dim;

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  emulator::memory::host_write(address, value, bytes);
  return cudaSuccess;
}
