// Runs a grid on one CPU thread. A few blocks are under way at a time; their threads are fibers. A fiber runs
// until it reaches a barrier or a warp collective (or now and then an atomic or any access), and then another
// goes on, of the same block or of another. When everyone who has to has arrived, all of them may go on.
// Every choice is drawn from a seed: which blocks come first, and who goes on.
//
// Four builds, of which tests/cpp/emulated.py says how they are compiled. Checked: memory is checker.cpp's.
// Sanitized: the address and undefined-behavior sanitizers watch; device and shared memory are exact heap
// blocks. Device: for the emulated device, nothing watches. Counted: counters.cpp counts.
#include <algorithm>
#include <numeric>

#include "cuda_runtime.h"
#include "fibers.h"
#include "machine.h"
#include "memory.h"
#include "reports.h"

namespace emulator {
namespace {

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
