// Every load and store that -fsanitize=thread instruments calls one of the __tsan_ functions below, which are
// this file's own. Device and shared memory live in one arena whose every byte has a cell: whether it is
// allocated, who wrote it last and who has read it since. An access is
//   out of bounds    if its cell is not allocated (allocations are exact and lie apart),
//   uninitialized    if it reads a cell that nobody wrote,
//   a race           if it meets another thread's access, one of the two writes, and nothing orders them.
// Ordered are: two accesses of one thread; of one block with a __syncthreads between; of one warp with a
// __syncwarp between; of two blocks if the first fenced and then did an atomic on a location on which the
// second did one later; and of two launches. Accesses outside the arena (stacks, parameters) are not checked.
//
// In the build for the address sanitizer the memory is that sanitizer's instead, and nothing here checks; nor
// in the one for the emulated device (-DEMULATOR_UNCHECKED), whose memory is the runtime's.
#include "checker.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define EMULATOR_UNCHECKED
#endif

namespace emulator::checker {
namespace {

std::vector<std::string> reports;
std::set<std::pair<const void*, std::string>> seen;

}  // namespace

void report(const std::string& message) {
  if (reports.size() < 50) reports.push_back(message);
}
size_t report_count() { return reports.size(); }
std::string take_reports() {
  std::string text;
  for (const std::string& r : reports) text += r + "\n";
  reports.clear();
  seen.clear();
  return text;
}

#if defined(EMULATOR_UNCHECKED)

void* allocate(size_t bytes, size_t alignment, const char*) {
  void* address = nullptr;
  if (posix_memalign(&address, alignment < sizeof(void*) ? sizeof(void*) : alignment, bytes) != 0)
    std::abort();
  std::memset(address, 0xcd, bytes);
  return address;
}
void release(void* address, size_t) { std::free(address); }
void host_write(void* address, int value, size_t bytes) { std::memset(address, value, bytes); }
void copy_in(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
bool copy_out(void* host, const void* device, size_t bytes) {
  std::memcpy(host, device, bytes);
  return true;
}
void start_launch() {}
void start_block(int) {}
void enter_thread(int) {}
void enter_host() {}
void pass_block_barrier() {}
void pass_warp_barrier(int) {}
void fence() {}
void atomic_access(const void*, size_t) {}

#else

namespace {

constexpr size_t kArena = size_t{1} << 29;
constexpr size_t kSharedPart = size_t{1} << 20;  // at the arena's start
constexpr size_t kGap = 256;

// A segment is what one thread does between two barriers. Cells name segments by number.
struct Segment {
  int64_t block;
  int thread;
  uint32_t block_epoch, warp_epoch;
};
constexpr uint32_t kFree = 0, kUnwritten = 1, kHostWritten = 2, kFirstSegment = 3;
constexpr uint32_t kAtomic = 1u << 31;                                    // in Cell::writer
enum Scope : uint32_t { kThread = 0, kWarp = 1, kBlock = 2, kGrid = 3 };  // who all read, in Cell::reader

struct Cell {
  uint32_t writer;  // kFree, kUnwritten, kHostWritten or a segment
  uint32_t reader;  // 0: none; else a segment, the scope in the top two bits
};

unsigned char* arena = nullptr;
Cell* cells = nullptr;
size_t shared_top = 0, device_top = kSharedPart;
int device_live = 0;

std::vector<Segment> segments;
uint32_t first_segment = kFirstSegment;  // of this launch; what came before is ordered
int64_t block = -1;
int running = -1;
uint32_t block_epoch = 0;
std::vector<uint32_t> warp_epochs, current_segment;
std::vector<char> fenced;
// For the order between blocks: what each atomic location has released, and each block acquired.
std::map<const void*, std::set<int64_t>> released;
std::set<int64_t> acquired;

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

uint32_t segment() {
  uint32_t& s = current_segment[static_cast<size_t>(running)];
  if (s == 0) {
    s = first_segment + static_cast<uint32_t>(segments.size());
    segments.push_back({block, running, block_epoch, warp_epochs[static_cast<size_t>(running) / 32]});
  }
  return s;
}

const Segment& at(uint32_t s) { return segments[s - first_segment]; }

bool ordered(uint32_t earlier, Scope scope, const Segment& now) {
  if (earlier < first_segment) return true;
  const Segment& then = at(earlier);
  if (then.block != now.block) return scope < kGrid && acquired.count(then.block) > 0;
  if (scope == kGrid) return false;
  if (then.block_epoch < now.block_epoch) return true;
  if (scope == kBlock || then.thread / 32 != now.thread / 32) return false;
  if (then.warp_epoch < now.warp_epoch) return true;
  return scope == kThread && then.thread == now.thread;
}

std::string describe(const Segment& s) {
  return "block " + std::to_string(s.block) + " thread " + std::to_string(s.thread);
}

void complain(const char* what, const void* address, size_t bytes, const void* pc, uint32_t other) {
  if (!seen.insert({pc, what}).second) return;
  Dl_info info{};
  std::string where = "?";
  if (dladdr(pc, &info) != 0) {
    if (info.dli_sname != nullptr) {
      int status = 0;
      char* name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
      where = status == 0 ? name : info.dli_sname;
      std::free(name);
    }
    char at_pc[32];
    std::snprintf(at_pc, sizeof at_pc, " [0x%zx]",
                  static_cast<size_t>(static_cast<const char*>(pc) - static_cast<char*>(info.dli_fbase)) - 1);
    where += at_pc;
  }
  std::string text = std::string(what) + " of " + std::to_string(bytes) + " bytes of " +
                     (offset_of(address) < kSharedPart ? "shared" : "device") + " memory by " +
                     describe(at(segment()));
  if (other >= first_segment) text += ", against " + describe(at(other));
  report(text + ", in " + where);
}

void read(const void* address, size_t bytes, const void* pc) {
  const size_t offset = offset_of(address);
  if (arena == nullptr || offset >= kArena || running < 0) return;
  const uint32_t self = segment();
  const Segment now = at(self);
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = cells[offset + i];
    const uint32_t writer = cell.writer & ~kAtomic;
    if (writer == kFree) return complain("out-of-bounds read", address, bytes, pc, 0);
    if (writer == kUnwritten) return complain("uninitialized read", address, bytes, pc, 0);
    if (writer >= first_segment && !ordered(writer, kThread, now))
      complain("race: read", address, bytes, pc, writer);
    const uint32_t last = cell.reader & 0x3fffffffu;
    const Scope scope = static_cast<Scope>(cell.reader >> 30);
    if (last == self && scope == kThread) continue;
    uint32_t merged = kThread;
    if (last >= first_segment && !ordered(last, scope, now)) {
      const Segment& then = at(last);
      merged = then.block != now.block || scope == kGrid                ? kGrid
               : then.thread / 32 != now.thread / 32 || scope == kBlock ? kBlock
                                                                        : kWarp;
    }
    cell.reader = self | merged << 30;
  }
}

void write(const void* address, size_t bytes, const void* pc, bool atomic) {
  const size_t offset = offset_of(address);
  if (arena == nullptr || offset >= kArena || running < 0) return;
  const uint32_t self = segment();
  const Segment now = at(self);
  const char* kind = atomic ? "race: atomic" : "race: write";
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = cells[offset + i];
    const uint32_t writer = cell.writer & ~kAtomic;
    if (writer == kFree)
      return complain(atomic ? "out-of-bounds atomic" : "out-of-bounds write", address, bytes, pc, 0);
    if (atomic && writer == kUnwritten) complain("uninitialized atomic", address, bytes, pc, 0);
    const bool both_atomic = atomic && (cell.writer & kAtomic) != 0;
    if (writer >= first_segment && !both_atomic && !ordered(writer, kThread, now))
      complain(kind, address, bytes, pc, writer);
    const uint32_t last = cell.reader & 0x3fffffffu;
    if (last >= first_segment && !ordered(last, static_cast<Scope>(cell.reader >> 30), now))
      complain(kind, address, bytes, pc, last);
    cell.writer = self | (atomic ? kAtomic : 0u);
    cell.reader = 0;
  }
}

}  // namespace

void* allocate(size_t bytes, size_t alignment, const char* kind) {
  prepare();
  const bool shared = std::strcmp(kind, "shared memory") == 0;
  size_t& top = shared ? shared_top : device_top;
  const size_t offset = (top + alignment - 1) / alignment * alignment;
  if (offset + bytes + kGap > (shared ? kSharedPart : kArena)) std::abort();
  top = offset + bytes + kGap;
  if (!shared) ++device_live;
  std::memset(arena + offset, 0xcd, bytes);
  fill_cells(offset, bytes, {kUnwritten, 0});
  return arena + offset;
}

void release(void* address, size_t bytes) {
  const size_t offset = offset_of(address);
  fill_cells(offset, bytes, {kFree, 0});
  if (offset < kSharedPart) return;
  if (--device_live == 0) {
    device_top = kSharedPart;
    segments.clear();
    first_segment = kFirstSegment;
  }
}

void host_write(void* address, int value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (cells[offset_of(address) + i].writer == kFree) return report("out-of-bounds cudaMemsetAsync");
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

void start_launch() {
  first_segment += static_cast<uint32_t>(segments.size());
  segments.clear();
  released.clear();
  block = -1;
}
void start_block(int threads) {
  ++block;
  shared_top = 0;
  block_epoch = 0;
  acquired.clear();
  const size_t n = static_cast<size_t>(threads);
  warp_epochs.assign((n + 31) / 32, 0);
  current_segment.assign(n, 0);
  fenced.assign(n, 0);
}
void enter_thread(int thread) { running = thread; }
void enter_host() { running = -1; }
void pass_block_barrier() {
  ++block_epoch;
  current_segment.assign(current_segment.size(), 0);
}
void pass_warp_barrier(int warp) {
  ++warp_epochs[static_cast<size_t>(warp)];
  for (size_t i = static_cast<size_t>(warp) * 32; i < current_segment.size() && i < size_t(warp) * 32 + 32;
       ++i)
    current_segment[i] = 0;
}
void fence() { fenced[static_cast<size_t>(running)] = 1; }

void atomic_access(const void* address, size_t bytes) {
  auto& location = released[address];
  acquired.insert(location.begin(), location.end());
  if (fenced[static_cast<size_t>(running)]) {
    location.insert(block);
    location.insert(acquired.begin(), acquired.end());
  }
  write(address, bytes, __builtin_return_address(0), true);
}

#endif

}  // namespace emulator::checker

#if !defined(EMULATOR_UNCHECKED)
extern "C" {

using emulator::checker::read;
using emulator::checker::write;

#define FRCNN_ACCESS(n)                                                                        \
  void __tsan_read##n(void* p) { read(p, n, __builtin_return_address(0)); }                    \
  void __tsan_write##n(void* p) { write(p, n, __builtin_return_address(0), false); }           \
  void __tsan_unaligned_read##n(void* p) { read(p, n, __builtin_return_address(0)); }          \
  void __tsan_unaligned_write##n(void* p) { write(p, n, __builtin_return_address(0), false); } \
  void __tsan_volatile_read##n(void* p) { read(p, n, __builtin_return_address(0)); }           \
  void __tsan_volatile_write##n(void* p) { write(p, n, __builtin_return_address(0), false); }
FRCNN_ACCESS(1)
FRCNN_ACCESS(2)
FRCNN_ACCESS(4)
FRCNN_ACCESS(8)
FRCNN_ACCESS(16)
#undef FRCNN_ACCESS
void __tsan_read_range(void* p, size_t n) { read(p, n, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { write(p, n, __builtin_return_address(0), false); }

// The kernels' atomics report themselves (emulator::atomic_access); here they only have to be done.
#define FRCNN_ATOMIC(bits, type)                                              \
  type __tsan_atomic##bits##_load(const volatile type* p, int) { return *p; } \
  void __tsan_atomic##bits##_store(volatile type* p, type v, int) { *p = v; } \
  type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) {       \
    const type old = *p;                                                      \
    *p = static_cast<type>(old + v);                                          \
    return old;                                                               \
  }                                                                           \
  type __tsan_atomic##bits##_fetch_or(volatile type* p, type v, int) {        \
    const type old = *p;                                                      \
    *p = static_cast<type>(old | v);                                          \
    return old;                                                               \
  }
FRCNN_ATOMIC(32, uint32_t)
FRCNN_ATOMIC(64, uint64_t)
#undef FRCNN_ATOMIC

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
#endif

// ---- called by tests/cpp/emulated.py ----------------------------------------------------------------------

extern "C" {

// Device memory: exactly `bytes`, holding nothing that may be read.
void* emulator_allocate(size_t bytes) { return emulator::checker::allocate(bytes, 256, "device memory"); }
void emulator_free(void* address, size_t bytes) { emulator::checker::release(address, bytes); }
void emulator_upload(void* device, const void* host, size_t bytes) {
  emulator::checker::copy_in(device, host, bytes);
}
// False if part of the range was never written.
bool emulator_download(void* host, const void* device, size_t bytes) {
  return emulator::checker::copy_out(host, device, bytes);
}

// The reports since the last call, one a line; empty if there are none.
const char* emulator_errors() {
  static std::string text;
  text = emulator::checker::take_reports();
  return text.c_str();
}
}
