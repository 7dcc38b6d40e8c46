// Which thread runs: blocks start and end, their threads pass on to each other, and a barrier lets go when
// all have come.
#include <algorithm>

#include "fibers.h"
#include "machine.h"
#include "reports.h"

namespace emulator {

Machine machine;

void fail(const std::string& message) {
  reports::add(message);
  machine.failed = true;
}

std::string place(const Location& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

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

}  // namespace emulator
