// Device and shared memory, and what watches the accesses to it. Three files do this, one in each build:
// checker.cpp, counters.cpp (-DEMULATOR_COUNTED) and plain.cpp (-DEMULATOR_UNCHECKED).
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

namespace memory {

// How many blocks run in turns. Each has a slot, 0 to kSlots - 1, from its start to its end.
#if defined(EMULATOR_COUNTED)
constexpr int kSlots = 1;
#else
constexpr int kSlots = 4;
#endif

void* allocate(size_t bytes, size_t alignment);
void release(void* address, size_t bytes);
void* allocate_shared(int slot, size_t bytes, size_t alignment);  // until the block ends
void host_write(void* address, int value, size_t bytes);
void copy_in(void* device, const void* host, size_t bytes);
bool copy_out(void* host, const void* device, size_t bytes);  // false if part of it was never written

// What happens on the emulated GPU, in order.
void start_launch(const void* kernel);
void end_launch();
void start_block(int slot, int64_t block, int threads);
void end_block(int slot);
void enter_thread(int slot, int thread);
void enter_host();
void pass_block_barrier();
void pass_collective(int warp, bool orders);  // `orders`: it is a __syncwarp
void fence();
void atomic_access(const void* address, size_t bytes, const void* pc);

}  // namespace memory

// ---- emulator.cpp -----------------------------------------------------------------------------------------

void seed(uint64_t value);
// A number below `bound`, from the seed.
uint64_t draw(uint64_t bound);
// Lets another thread go on; the block then sleeps while others run, for up to `most` switches.
void yield(uint64_t most);
// Where blocks meet, so that each order in which they can is seen.
inline void yield_at_meeting() {
  if (draw(4) == 0) yield(512);
}

}  // namespace emulator
