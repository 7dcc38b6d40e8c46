// Runs a grid on one CPU thread: blocks one after the other, the threads of a block as fibers, both in an
// order drawn from a seed. A fiber runs until it reaches a barrier or a warp collective; when everyone who
// has to has arrived, all of them go on, again in a random order.
//
// Two builds. Checked: the kernels are compiled with -fsanitize=thread, but linked against the memory checker
// (checker.cpp) in place of that sanitizer's runtime. Sanitized: compiled with the address and
// undefined-behavior sanitizers; device and shared memory are then exact heap blocks.
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "checker.h"
#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = size_t{64} << 10;  // the address sanitizer clears all of it at every switch
constexpr size_t kDefaultShared = size_t{48} << 10;

enum class State { kReady, kAtBarrier, kInCollective, kDone };

struct Fiber {
  ucontext_t context;
  void* fake_stack = nullptr;  // the address sanitizer's
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

struct Machine {
  uint3 thread_index{}, block_index{};
  dim3 block_dim, grid_dim;
  uint64_t random = 1;

  unsigned char* stacks = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  ucontext_t scheduler;
  void* scheduler_stack = nullptr;
  std::vector<int> ready;
  int current = -1, threads = 0, alive = 0, waiting = 0, barrier_result = 0;
  bool failed = false;

  const std::function<void()>* body = nullptr;
  std::vector<SharedBlock> shared;
  size_t dynamic_bytes = 0;
  std::map<const void*, size_t> allowed_shared;
};

Machine machine;

uint64_t draw(uint64_t bound) {
  machine.random ^= machine.random << 13;
  machine.random ^= machine.random >> 7;
  machine.random ^= machine.random << 17;
  return machine.random % bound;
}

template <typename T>
void shuffle_order(std::vector<T>* v) {
  for (size_t i = v->size(); i > 1; --i) std::swap((*v)[i - 1], (*v)[draw(i)]);
}

// ---- fibers -----------------------------------------------------------------------------------------------

unsigned char* stack_of(int fiber) { return machine.stacks + static_cast<size_t>(fiber) * kStackBytes; }

#if defined(__SANITIZE_ADDRESS__)
struct Stack {
  void* bottom;
  size_t bytes;
};
const Stack host_stack = [] {
  Stack found{};
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &found.bottom, &found.bytes);
  pthread_attr_destroy(&attributes);
  return found;
}();
#endif

// Leaves the running context (`from` < 0: the scheduler) for another.
void switch_to(int from, int to) {
  ucontext_t* out = from < 0 ? &machine.scheduler : &machine.fibers[from]->context;
  ucontext_t* in = to < 0 ? &machine.scheduler : &machine.fibers[to]->context;
  machine.current = to;
  if (to >= 0) {
    machine.thread_index = machine.fibers[to]->index;
    checker::enter_thread(to);
  } else {
    checker::enter_host();
  }
#if defined(__SANITIZE_ADDRESS__)
  void** save = from < 0 ? &machine.scheduler_stack : &machine.fibers[from]->fake_stack;
  const bool dying = from >= 0 && machine.fibers[from]->state == State::kDone;
  const Stack stack = to < 0 ? host_stack : Stack{stack_of(to), kStackBytes};
  __sanitizer_start_switch_fiber(dying ? nullptr : save, stack.bottom, stack.bytes);
  swapcontext(out, in);
  __sanitizer_finish_switch_fiber(*save, nullptr, nullptr);
#else
  swapcontext(out, in);
#endif
}

// The next fiber that can run, or the scheduler if there is none.
int next_ready() {
  if (machine.failed || machine.ready.empty()) return -1;
  const size_t pick = draw(machine.ready.size());
  const int fiber = machine.ready[pick];
  machine.ready[pick] = machine.ready.back();
  machine.ready.pop_back();
  return fiber;
}

void make_ready(int fiber) {
  machine.fibers[fiber]->state = State::kReady;
  machine.ready.push_back(fiber);
}

void pass_on() {
  const int from = machine.current, to = next_ready();
  if (to != from) switch_to(from, to);
}

void fail(const std::string& message) {
  checker::report(message);
  machine.failed = true;
}

std::string place(const Location& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

void release_barrier_if_complete() {
  if (machine.waiting == 0 || machine.waiting < machine.alive) return;
  int result = 0;
  const Fiber* first = nullptr;
  for (int i = 0; i < machine.threads; ++i) {
    Fiber& f = *machine.fibers[i];
    if (f.state != State::kAtBarrier) continue;
    if (first == nullptr) first = &f;
    if (f.where.line() != first->where.line() || f.barrier != first->barrier)
      return fail("threads of a block wait at different barriers: " + place(first->where) + " and " +
                  place(f.where));
    result |= f.predicate;
  }
  machine.barrier_result = result;
  machine.waiting = 0;
  checker::pass_block_barrier();
  for (int i = 0; i < machine.threads; ++i)
    if (machine.fibers[i]->state == State::kAtBarrier) make_ready(i);
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  (*machine.body)();
  machine.fibers[machine.current]->state = State::kDone;
  --machine.alive;
  release_barrier_if_complete();
  const int from = machine.current;
  switch_to(from, next_ready());
  std::abort();
}

void start_fiber(int i) {
  Fiber& f = *machine.fibers[i];
  const unsigned n = static_cast<unsigned>(i);
  f.index = {n % machine.block_dim.x, n / machine.block_dim.x % machine.block_dim.y,
             n / (machine.block_dim.x * machine.block_dim.y)};
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stack_of(i);
  f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fiber_main, 0);
  make_ready(i);
}

void report_stuck() {
  for (int i = 0; i < machine.threads; ++i) {
    const Fiber& f = *machine.fibers[i];
    if (f.state == State::kAtBarrier || f.state == State::kInCollective) {
      const char* kind = f.state == State::kAtBarrier ? "__syncthreads" : "a warp collective";
      return fail(std::string("deadlock: thread ") + std::to_string(i) + " waits for ever in " + kind +
                  " at " + place(f.where));
    }
  }
}

void run_block() {
  machine.ready.clear();
  machine.alive = machine.threads;
  machine.waiting = 0;
  checker::start_block(machine.threads);
  for (int i = 0; i < machine.threads; ++i) start_fiber(i);
  const int first = next_ready();
  switch_to(-1, first);
  if (!machine.failed && machine.alive > 0) report_stuck();
  for (const SharedBlock& s : machine.shared) checker::release(s.address, s.bytes);
  machine.shared.clear();
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

// ---- called by kernels ------------------------------------------------------------------------------------

int block_barrier(Barrier kind, int predicate, Location where) {
  Fiber& f = *machine.fibers[machine.current];
  f.barrier = kind;
  f.predicate = predicate != 0;
  f.where = where;
  f.state = State::kAtBarrier;
  ++machine.waiting;
  release_barrier_if_complete();
  pass_on();
  return machine.barrier_result;
}

uint64_t warp_collective(WarpOp op, unsigned mask, uint64_t value, int argument, Location where) {
  const int self = machine.current, lane = self % kWarp, base = self - lane;
  Fiber& f = *machine.fibers[self];
  f.op = op;
  f.mask = mask;
  f.value = value;
  f.argument = argument;
  f.where = where;
  f.state = State::kInCollective;
  if ((mask >> lane & 1u) == 0) fail("a lane outside the mask calls a warp collective at " + place(where));

  bool complete = true;
  for (int i = 0; i < kWarp && complete; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    const Fiber* other = base + i < machine.threads ? machine.fibers[base + i].get() : nullptr;
    complete = false;
    if (other == nullptr || other->state == State::kDone) {
      fail("the mask of a warp collective names a lane that has exited, at " + place(where));
    } else if (other->state == State::kInCollective) {
      complete = other->mask == mask && other->op == op && other->where.line() == where.line();
      if (!complete) {
        fail("lanes of one mask wait in different warp collectives: " + place(where) + " and " +
             place(other->where));
      }
    }
  }
  if (!complete) {
    pass_on();
    return f.value;
  }

  uint64_t values[kWarp] = {}, ballot = 0, most = 0;
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    values[i] = machine.fibers[base + i]->value;
    if (values[i] != 0) ballot |= uint64_t{1} << i;
    if (values[i] > most) most = values[i];
  }
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    Fiber& other = *machine.fibers[base + i];
    if (op == WarpOp::kBallot || op == WarpOp::kReduceMax) {
      other.value = op == WarpOp::kBallot ? ballot : most;
    } else if (op != WarpOp::kSync) {
      const int source = source_lane(op, i, other.argument);
      if ((mask >> source & 1u) == 0) fail("a shuffle reads a lane outside its mask, at " + place(where));
      other.value = values[source];
    }
    make_ready(base + i);
  }
  if (op == WarpOp::kSync) {
    if (mask != 0xffffffffu) fail("__syncwarp of a part of a warp is not emulated, at " + place(where));
    checker::pass_warp_barrier(base / kWarp);
  }
  pass_on();
  return f.value;
}

void* shared_memory(const void* tag, size_t bytes, size_t alignment) {
  size_t total = bytes;
  for (const SharedBlock& s : machine.shared) {
    if (s.tag == tag) return s.address;
    total += s.bytes;
  }
  if (total > static_cast<size_t>(kMostShared))
    fail("a block uses more shared memory than the smallest GPU has");
  machine.shared.push_back({tag, checker::allocate(bytes, alignment, "shared memory"), bytes});
  return machine.shared.back().address;
}

void* dynamic_shared_memory() {
  static const char tag = 0;
  return shared_memory(&tag, machine.dynamic_bytes, 16);
}

void fence() { checker::fence(); }
void atomic_access(const void* address, size_t bytes) { checker::atomic_access(address, bytes); }

// ---- called by launchers ----------------------------------------------------------------------------------

cudaError_t allow_dynamic_shared(const void* kernel, int bytes) {
  if (bytes < 0 || bytes > kMostShared) return cudaErrorInvalidValue;
  machine.allowed_shared[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t run(const void* kernel, const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647u ||
      grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  const auto allowed = machine.allowed_shared.find(kernel);
  const size_t limit = allowed == machine.allowed_shared.end() ? kDefaultShared : allowed->second;
  if (config.dynamicSmemBytes > limit) return cudaErrorInvalidValue;

  if (machine.stacks == nullptr) {
    machine.stacks = static_cast<unsigned char*>(mmap(nullptr, 1024 * kStackBytes, PROT_READ | PROT_WRITE,
                                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (int i = 0; i < 1024; ++i) machine.fibers.push_back(std::make_unique<Fiber>());
  }
  const size_t reported = checker::report_count();
  machine.grid_dim = grid;
  machine.block_dim = block;
  machine.threads = static_cast<int>(threads);
  machine.dynamic_bytes = config.dynamicSmemBytes;
  machine.body = &thread;
  machine.failed = false;

  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  shuffle_order(&order);
  checker::start_launch();
  for (const uint64_t b : order) {
    machine.block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                           static_cast<unsigned>(b / grid.x / grid.y)};
    run_block();
    if (machine.failed) break;
  }
  checker::enter_host();
  return checker::report_count() == reported ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace emulator

const uint3& threadIdx = emulator::machine.thread_index;
const uint3& blockIdx = emulator::machine.block_index;
const dim3& blockDim = emulator::machine.block_dim;
const dim3& gridDim = emulator::machine.grid_dim;

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  emulator::checker::host_write(address, value, bytes);
  return cudaSuccess;
}

// ---- called by tests/cpp/emulated.py ----------------------------------------------------------------------

extern "C" {

void emulator_seed(uint64_t seed) {
  emulator::machine.random = seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
}
}
