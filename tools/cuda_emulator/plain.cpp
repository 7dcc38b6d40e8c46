// Memory that nothing watches: in the build for the address sanitizer that sanitizer does, and on the
// emulated device the memory is the runtime's. Stores are seen by all blocks at once.
#if defined(EMULATOR_UNCHECKED)
#include <cstdlib>
#include <cstring>
#include <vector>

#include "memory.h"

namespace emulator::memory {
namespace {

std::vector<void*> shared[kSlots];

}  // namespace

void* allocate(size_t bytes, size_t alignment) {
  void* address = nullptr;
  if (posix_memalign(&address, alignment < sizeof(void*) ? sizeof(void*) : alignment, bytes) != 0)
    std::abort();
  std::memset(address, 0xcd, bytes);
  return address;
}
void release(void* address, size_t) { std::free(address); }
void* allocate_shared(int slot, size_t bytes, size_t alignment) {
  shared[slot].push_back(allocate(bytes, alignment));
  return shared[slot].back();
}
void host_write(void* address, int value, size_t bytes) { std::memset(address, value, bytes); }
void copy_in(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
bool copy_out(void* host, const void* device, size_t bytes) {
  std::memcpy(host, device, bytes);
  return true;
}

void start_launch(const void*) {}
void end_launch() {}
void start_block(int, int64_t, int) {}
void end_block(int slot) {
  for (void* address : shared[slot]) std::free(address);
  shared[slot].clear();
}
void enter_thread(int, int) {}
void enter_host() {}
void pass_block_barrier() {}
void pass_collective(int, bool) {}
void fence() { yield_at_meeting(); }
void atomic_access(const void*, size_t, const void*) { yield_at_meeting(); }

}  // namespace emulator::memory
#endif
