// Counts what the accesses of a kernel ask of a GPU's memory: the counted build's memory
// (-DEMULATOR_COUNTED).
//
// A request is what a warp does at once: the accesses of its lanes from one place in the code, the n-th of
// one lane with the n-th of another since the last barrier or collective. Of each request are counted
//   to device memory   the sectors of 32 bytes and the lines of 128 that it touches, and the bytes it uses;
//   to shared memory   the wavefronts: how often the busiest of the 32 banks is used, for 16-byte accesses
//                      by quarters of a warp, for 8-byte ones by halves; and the wavefronts without
//                      conflicts.
// Of a launch, the sectors and lines that are touched at all, and the sectors that each block touches at all:
// what comes from device memory and from L2 if nothing is fetched twice.
#if defined(EMULATOR_COUNTED)
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "hooks.h"
#include "memory.h"

namespace emulator {
namespace {

constexpr size_t kArena = size_t{1} << 31, kSharedPart = size_t{1} << 20;
constexpr size_t kSector = 32, kLine = 128, kBank = 4, kLanes = 32;

enum class Kind { kRead, kWrite, kAtomic };

// One place in the code that accesses memory.
struct Site {
  const void* pc;
  Kind kind;
  bool shared;
  size_t bytes;  // by lane
  uint64_t requests = 0, lanes = 0, sectors = 0, lines = 0, useful = 0, wavefronts = 0, least = 0;
};

struct Request {
  unsigned mask = 0;
  std::array<uint32_t, kLanes> offset;  // in the arena
};

// What a warp has done since its last barrier or collective, by site.
struct Visits {
  std::array<uint32_t, kLanes> count{};
  std::vector<Request> requests;
};
struct Warp {
  std::vector<Visits> sites;
  std::vector<uint32_t> touched;
  uint64_t collectives = 0;
};

// What a block has done.
struct Work {
  uint64_t requests = 0, wavefronts = 0, barriers = 0;
  uint64_t device_phases = 0, shared_phases = 0;  // between barriers, those with such accesses
  uint64_t collectives = 0, busiest = 0;          // busiest: the collectives of the warp with the most
};

struct Touched {
  std::vector<uint32_t> in_launch, in_block;  // when last, by sector or line
  uint64_t launch_total = 0, block_total = 0;

  void touch(size_t i, uint32_t launch, uint32_t block) {
    if (in_launch[i] != launch) in_launch[i] = launch, ++launch_total;
    if (in_block[i] != block) in_block[i] = block, ++block_total;
  }
};

unsigned char* arena = nullptr;
size_t shared_top = 0, device_top = kSharedPart;
int device_live = 0, running = -1;

const void* kernel = nullptr;
std::vector<Site> sites;
std::unordered_map<const void*, uint32_t> site_at;
std::vector<Warp> warps;
Work work, longest;
uint64_t total_requests = 0, total_collectives = 0, blocks = 0, threads_of_block = 0;
bool device_used = false, shared_used = false;
uint32_t launch_number = 0, block_number = 0;
Touched sectors_read, sectors_written, lines;
std::string text;

void prepare() {
  if (arena != nullptr) return;
  void* mapped =
      mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) std::abort();
  arena = static_cast<unsigned char*>(mapped);
  for (Touched* t : {&sectors_read, &sectors_written}) {
    t->in_launch.resize(kArena / kSector);
    t->in_block.resize(kArena / kSector);
  }
  lines.in_launch.resize(kArena / kLine);
  lines.in_block.resize(kArena / kLine);
}

void* take(size_t* top, size_t end, size_t bytes, size_t alignment) {
  const size_t offset = (*top + alignment - 1) / alignment * alignment;
  if (offset + bytes > end) std::abort();
  *top = offset + bytes;
  return arena + offset;
}

// Sorted, each once.
template <size_t kMost>
size_t distinct(std::array<uint32_t, kMost>* values, size_t count) {
  if (std::is_sorted(values->begin(), values->begin() + count) == false)
    std::sort(values->begin(), values->begin() + count);
  return static_cast<size_t>(std::unique(values->begin(), values->begin() + count) - values->begin());
}

void count_device(Site* site, const Request& request) {
  std::array<uint32_t, kLanes> starts;
  std::array<uint32_t, 2 * kLanes> sectors, in_lines;
  size_t n = 0;
  for (size_t lane = 0; lane < kLanes; ++lane)
    if (request.mask >> lane & 1u) starts[n++] = request.offset[lane];
  site->lanes += n;
  n = distinct(&starts, n);
  site->useful += n * site->bytes;
  size_t m = 0, k = 0;
  for (size_t i = 0; i < n; ++i)
    for (const size_t byte : {size_t{starts[i]}, starts[i] + site->bytes - 1}) {
      sectors[m++] = static_cast<uint32_t>(byte / kSector);
      in_lines[k++] = static_cast<uint32_t>(byte / kLine);
    }
  m = distinct(&sectors, m);
  k = distinct(&in_lines, k);
  site->sectors += m;
  site->lines += k;
  Touched& touched = site->kind == Kind::kRead ? sectors_read : sectors_written;
  for (size_t i = 0; i < m; ++i) touched.touch(sectors[i], launch_number, block_number);
  for (size_t i = 0; i < k; ++i) lines.touch(in_lines[i], launch_number, block_number);
  device_used = true;
}

void count_shared(Site* site, const Request& request) {
  const size_t group = site->bytes <= kBank ? kLanes : kLanes * kBank / site->bytes;
  for (size_t first = 0; first < kLanes; first += group) {
    std::array<uint32_t, kLanes> words;
    size_t n = 0;
    for (size_t lane = first; lane < first + group; ++lane)
      for (size_t at = 0; request.mask >> lane & 1u && at < std::max(site->bytes, kBank); at += kBank)
        words[n++] = static_cast<uint32_t>((request.offset[lane] + at) / kBank);
    if (n == 0) continue;
    n = distinct(&words, n);
    std::array<unsigned, 32> uses{};
    unsigned most = 0;
    for (size_t i = 0; i < n; ++i) most = std::max(most, ++uses[words[i] % 32]);
    site->wavefronts += most;
    work.wavefronts += most;
    site->least += 1;
  }
  site->lanes += static_cast<uint64_t>(__builtin_popcount(request.mask));
  shared_used = true;
}

void end_of_visits(Warp* warp) {
  for (const uint32_t s : warp->touched) {
    Visits& visits = warp->sites[s];
    for (const Request& request : visits.requests) {
      if (sites[s].shared) {
        count_shared(&sites[s], request);
      } else {
        count_device(&sites[s], request);
      }
    }
    sites[s].requests += visits.requests.size();
    work.requests += visits.requests.size();
    visits.requests.clear();
    visits.count.fill(0);
  }
  warp->touched.clear();
}

void end_of_phase() {
  for (Warp& warp : warps) end_of_visits(&warp);
  work.device_phases += device_used;
  work.shared_phases += shared_used;
  device_used = shared_used = false;
}

void access(const void* address, size_t bytes, const void* pc, Kind kind) {
  const size_t offset = static_cast<size_t>(static_cast<const unsigned char*>(address) - arena);
  if (arena == nullptr || offset >= kArena || running < 0) return;
  const auto [found, fresh] = site_at.try_emplace(pc, static_cast<uint32_t>(sites.size()));
  const uint32_t s = found->second;
  if (fresh) sites.push_back({pc, kind, offset < kSharedPart, bytes});
  Warp& warp = warps[static_cast<size_t>(running) / kLanes];
  if (warp.sites.size() <= s) warp.sites.resize(sites.size());
  Visits& visits = warp.sites[s];
  const size_t lane = static_cast<size_t>(running) % kLanes, visit = visits.count[lane]++;
  if (visits.requests.empty()) warp.touched.push_back(s);
  if (visits.requests.size() <= visit) visits.requests.emplace_back();
  visits.requests[visit].mask |= 1u << lane;
  visits.requests[visit].offset[lane] = static_cast<uint32_t>(offset);
}

size_t in_library(const void* pc) {
  Dl_info info{};
  if (dladdr(pc, &info) == 0) std::abort();
  return static_cast<size_t>(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase));
}

template <typename... Numbers>
void add_line(const char* what, Numbers... numbers) {
  text += what;
  ((text += "\t" + std::to_string(numbers)), ...);
  text += "\n";
}

}  // namespace

void on_read(const void* address, size_t bytes, const void* pc) { access(address, bytes, pc, Kind::kRead); }
void on_write(void* address, size_t bytes, const void* pc) { access(address, bytes, pc, Kind::kWrite); }

namespace memory {

void atomic_access(const void* address, size_t bytes, const void* pc) {
  access(address, bytes, pc, Kind::kAtomic);
}
void fence() {}

void* allocate(size_t bytes, size_t alignment) {
  prepare();
  ++device_live;
  return take(&device_top, kArena, bytes, alignment);
}
void release(void*, size_t) {
  if (--device_live == 0) device_top = kSharedPart;
}
void* allocate_shared(int, size_t bytes, size_t alignment) {
  return take(&shared_top, kSharedPart, bytes, alignment);
}
void host_write(void* address, int value, size_t bytes) { std::memset(address, value, bytes); }
void copy_in(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
bool copy_out(void* host, const void* device, size_t bytes) {
  std::memcpy(host, device, bytes);
  return true;
}

void start_launch(const void* launched) {
  prepare();
  kernel = launched;
  ++launch_number;
  sites.clear();
  site_at.clear();
  warps.clear();
  longest = {};
  total_requests = total_collectives = blocks = 0;
  for (Touched* t : {&sectors_read, &sectors_written, &lines}) t->launch_total = t->block_total = 0;
}
void end_launch() {
  running = -1;
  add_line("launch", in_library(kernel), blocks, threads_of_block, total_requests, total_collectives,
           longest.requests, longest.collectives, longest.wavefronts, longest.barriers, longest.device_phases,
           longest.shared_phases, longest.busiest, sectors_read.launch_total, sectors_read.block_total,
           sectors_written.launch_total, sectors_written.block_total, lines.launch_total);
  for (const Site& s : sites)
    add_line("site", in_library(s.pc) - 1, static_cast<int>(s.kind), static_cast<int>(s.shared), s.bytes,
             s.requests, s.lanes, s.sectors, s.lines, s.useful, s.wavefronts, s.least);
}
void start_block(int, int64_t, int threads) {
  shared_top = 0;
  ++block_number;
  ++blocks;
  threads_of_block = static_cast<uint64_t>(threads);
  warps.resize((static_cast<size_t>(threads) + kLanes - 1) / kLanes);
  work = {};
}
void end_block(int) {
  end_of_phase();
  for (Warp& warp : warps) {
    work.collectives += warp.collectives;
    work.busiest = std::max(work.busiest, warp.collectives);
    warp.collectives = 0;
  }
  total_requests += work.requests;
  total_collectives += work.collectives;
  if (work.requests + work.collectives > longest.requests + longest.collectives) longest = work;
}
void enter_thread(int, int thread) { running = thread; }
void enter_host() { running = -1; }
void pass_block_barrier() {
  ++work.barriers;
  end_of_phase();
}
void pass_collective(int warp, bool) {
  Warp& w = warps[static_cast<size_t>(warp)];
  ++w.collectives;
  end_of_visits(&w);
}

}  // namespace memory
}  // namespace emulator

// What was counted since the last call: lines of numbers, which report/counters.py reads.
extern "C" const char* emulator_counts() {
  static std::string taken;
  taken.swap(emulator::text);
  emulator::text.clear();
  return taken.c_str();
}
#endif
