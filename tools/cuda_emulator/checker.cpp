// Checks every load and store of the kernels: the checked build's memory.
//
// Every access that -fsanitize=thread instruments calls one of the __tsan_ functions of hooks.cpp, which call
// read() and write() here. Device and shared memory live in one arena whose every byte has a cell: whether it
// is allocated, who wrote it last and who has read it since. An access is
//   out of bounds    if its cell is not allocated (allocations are exact and lie apart),
//   uninitialized    if it reads a cell that nobody wrote,
//   a race           if it meets another thread's access, one of the two writes, and nothing orders them
//                    (order.h says what does).
// Accesses outside the arena (stacks, parameters) are not checked. Stores to device memory are seen late by
// other blocks (stores.h).
#if !defined(EMULATOR_UNCHECKED) && !defined(EMULATOR_COUNTED)
#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "hooks.h"
#include "memory.h"
#include "order.h"
#include "reports.h"
#include "stores.h"

namespace emulator {
namespace {

using order::Scope;

constexpr size_t kArena = size_t{1} << 29;
constexpr size_t kSharedPart = size_t{1} << 20;  // at the arena's start, as much for each slot
constexpr size_t kSharedOfSlot = kSharedPart / memory::kSlots;
constexpr size_t kGap = 256;
// About how many accesses a thread makes before another goes on, where nothing else makes it wait.
constexpr uint64_t kTurn = 1024;

constexpr uint32_t kFree = 0, kUnwritten = 1, kHostWritten = 2;
constexpr uint32_t kAtomic = 1u << 31;  // in Cell::writer
static_assert(order::kFirst == kHostWritten + 1);

struct Cell {
  uint32_t writer;  // kFree, kUnwritten, kHostWritten or a segment
  uint32_t reader;  // 0: none; else a segment, the scope of all readers in the top two bits

  bool operator==(const Cell&) const = default;
};

unsigned char* arena = nullptr;
Cell* cells = nullptr;
size_t shared_top[memory::kSlots] = {}, device_top = kSharedPart;
int device_live = 0, running = -1;
uint64_t turn = kTurn;
std::set<std::pair<const void*, std::string>> seen;  // reports of this launch

void prepare() {
  if (arena != nullptr) return;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* a = mmap(nullptr, kArena, PROT_READ | PROT_WRITE, flags, -1, 0);
  void* c = mmap(nullptr, kArena * sizeof(Cell), PROT_READ | PROT_WRITE, flags, -1, 0);
  if (a == MAP_FAILED || c == MAP_FAILED) std::abort();
  arena = static_cast<unsigned char*>(a);
  cells = static_cast<Cell*>(c);
}

size_t offset_of(const void* address) {
  return static_cast<size_t>(static_cast<const unsigned char*>(address) - arena);
}

void fill_cells(size_t offset, size_t bytes, Cell value) {
  for (size_t i = 0; i < bytes; ++i) cells[offset + i] = value;
}

// Exactly `bytes` after *top, apart from what lies there already.
void* take(size_t* top, size_t end, size_t bytes, size_t alignment) {
  const size_t offset = (*top + alignment - 1) / alignment * alignment;
  if (offset + bytes + kGap > end) std::abort();
  *top = offset + bytes + kGap;
  std::memset(arena + offset, 0xcd, bytes);
  fill_cells(offset, bytes, {kUnwritten, 0});
  return arena + offset;
}

std::string function_at(const void* pc) {
  Dl_info info{};
  if (dladdr(pc, &info) == 0) return "?";
  std::string name;
  if (info.dli_sname != nullptr) {
    int status = 0;
    char* demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
    name = status == 0 ? demangled : info.dli_sname;
    std::free(demangled);
  }
  char offset[32];
  std::snprintf(offset, sizeof offset, " [0x%zx]",
                static_cast<size_t>(static_cast<const char*>(pc) - static_cast<char*>(info.dli_fbase)) - 1);
  return name + offset;
}

void complain(const char* what, const void* address, size_t bytes, const void* pc, uint32_t other) {
  if (!seen.insert({pc, what}).second) return;
  std::string text = std::string(what) + " of " + std::to_string(bytes) + " bytes of " +
                     (offset_of(address) < kSharedPart ? "shared" : "device") + " memory by " +
                     order::describe(order::current());
  if (order::of_this_launch(other)) text += ", against " + order::describe(other);
  reports::add(text + ", in " + function_at(pc));
}

bool is_watched(size_t offset) { return arena != nullptr && offset < kArena && running >= 0; }

// Calls check(cell) for every cell, which it changes; once for neighbors that are equal.
template <typename F>
void for_each_cell(size_t offset, size_t bytes, F&& check) {
  Cell before{}, after{};
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = cells[offset + i];
    if (i == 0 || cell != before) {
      before = after = cell;
      if (!check(&after)) return;
    }
    cell = after;
  }
}

void check_read(size_t offset, size_t bytes, const void* pc) {
  const uint32_t self = order::current();
  for_each_cell(offset, bytes, [&](Cell* cell) {
    const auto wrong = [&](const char* what, uint32_t other) {
      complain(what, arena + offset, bytes, pc, other);
    };
    const uint32_t writer = cell->writer & ~kAtomic;
    if (writer == kFree) return wrong("out-of-bounds read", 0), false;
    if (writer == kUnwritten) return wrong("uninitialized read", 0), false;
    if (!order::ordered(writer, Scope::kThread)) wrong("race: read", writer);
    const uint32_t last = cell->reader & 0x3fffffffu;
    const Scope scope = static_cast<Scope>(cell->reader >> 30);
    if (last == self && scope == Scope::kThread) return true;
    Scope all = Scope::kThread;
    if (!order::ordered(last, scope)) all = std::max(scope, order::joined(last, self));
    cell->reader = self | all << 30;
    return true;
  });
}

void check_write(size_t offset, size_t bytes, const void* pc, bool atomic) {
  const uint32_t self = order::current();
  for_each_cell(offset, bytes, [&](Cell* cell) {
    const auto wrong = [&](const char* what, uint32_t other) {
      complain(what, arena + offset, bytes, pc, other);
    };
    const char* const race = atomic ? "race: atomic" : "race: write";
    const uint32_t writer = cell->writer & ~kAtomic;
    if (writer == kFree) return wrong(atomic ? "out-of-bounds atomic" : "out-of-bounds write", 0), false;
    if (atomic && writer == kUnwritten) wrong("uninitialized atomic", 0);
    const bool both_atomic = atomic && (cell->writer & kAtomic) != 0;
    if (!both_atomic && !order::ordered(writer, Scope::kThread)) wrong(race, writer);
    const uint32_t last = cell->reader & 0x3fffffffu;
    if (!order::ordered(last, static_cast<Scope>(cell->reader >> 30))) wrong(race, last);
    *cell = {self | (atomic ? kAtomic : 0u), 0};
    return true;
  });
}

void take_turn() {
  if (--turn != 0) return;
  turn = 1 + draw(2 * kTurn);
  yield(0);
}

}  // namespace

// ---- accesses ---------------------------------------------------------------------------------------------

void on_read(const void* address, size_t bytes, const void* pc) {
  const size_t offset = offset_of(address);
  if (!is_watched(offset)) return;
  take_turn();
  check_read(offset, bytes, pc);
}

void on_write(void* address, size_t bytes, const void* pc) {
  const size_t offset = offset_of(address);
  if (!is_watched(offset)) return;
  take_turn();
  check_write(offset, bytes, pc, false);
  if (offset >= kSharedPart) stores::add(address, bytes, order::current());
}

namespace memory {

void atomic_access(const void* address, size_t bytes, const void* pc) {
  const size_t offset = offset_of(address);
  if (!is_watched(offset)) return;
  yield_at_meeting();
  check_write(offset, bytes, pc, true);
  if (offset < kSharedPart) return;  // between the threads of a block, barriers order
  stores::settle(address, bytes);
  order::atomic(address);
}

void fence() {
  yield_at_meeting();
  stores::fence(order::fence());
}

// ---- memory -----------------------------------------------------------------------------------------------

void* allocate(size_t bytes, size_t alignment) {
  prepare();
  ++device_live;
  return take(&device_top, kArena, bytes, alignment);
}

void release(void* address, size_t bytes) {
  fill_cells(offset_of(address), bytes, {kFree, 0});
  if (--device_live > 0) return;
  device_top = kSharedPart;
  order::forget();
}

void* allocate_shared(int slot, size_t bytes, size_t alignment) {
  const size_t end = (static_cast<size_t>(slot) + 1) * kSharedOfSlot;
  return take(&shared_top[slot], end, bytes, alignment);
}

void host_write(void* address, int value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (cells[offset_of(address) + i].writer == kFree) return reports::add("out-of-bounds cudaMemsetAsync");
  std::memset(address, value, bytes);
  fill_cells(offset_of(address), bytes, {kHostWritten, 0});
}
void copy_in(void* device, const void* host, size_t bytes) {
  std::memcpy(device, host, bytes);
  fill_cells(offset_of(device), bytes, {kHostWritten, 0});
}
bool copy_out(void* host, const void* device, size_t bytes) {
  std::memcpy(host, device, bytes);
  for (size_t i = 0; i < bytes; ++i)
    if (cells[offset_of(device) + i].writer == kUnwritten) return false;
  return true;
}

// ---- what happens -----------------------------------------------------------------------------------------

void start_launch(const void*) {
  prepare();
  seen.clear();
  order::start_launch();
}
void end_launch() {
  stores::end_launch();
  running = -1;
}
void start_block(int slot, int64_t block, int threads) {
  shared_top[slot] = static_cast<size_t>(slot) * kSharedOfSlot;
  order::start_block(slot, block, threads);
}
void end_block(int slot) {
  const size_t begin = static_cast<size_t>(slot) * kSharedOfSlot;
  fill_cells(begin, shared_top[slot] - begin, {kFree, 0});
  stores::end_block(slot);
}
void enter_thread(int slot, int thread) {
  running = thread;
  order::enter_thread(slot, thread);
  stores::show(slot);
}
void enter_host() { running = -1; }
void pass_block_barrier() { order::pass_block_barrier(); }
void pass_collective(int warp, bool orders) {
  if (orders) order::pass_warp_barrier(warp);
}

}  // namespace memory
}  // namespace emulator
#endif
