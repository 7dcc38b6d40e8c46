// The memory checker of the emulator: bounds, initialization and races of every access to device memory.
#pragma once

#include <cstddef>
#include <string>

namespace emulator::checker {

void* allocate(size_t bytes, size_t alignment, const char* kind);
void release(void* address, size_t bytes);
void host_write(void* address, int value, size_t bytes);
void copy_in(void* device, const void* host, size_t bytes);
bool copy_out(void* host, const void* device, size_t bytes);

// What happens on the emulated GPU, in order.
void start_launch();
void start_block(int threads);
void enter_thread(int thread);
void enter_host();
void pass_block_barrier();
void pass_warp_barrier(int warp);
void fence();
void atomic_access(const void* address, size_t bytes);

void report(const std::string& message);
size_t report_count();
std::string take_reports();

}  // namespace emulator::checker
