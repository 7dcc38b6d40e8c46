// What happened on the emulated device, one row per call, for counts and for finding what went wrong.
#pragma once

#include <cstddef>
#include <string>

namespace gpu {

// Kinds: launch, memset, memcpy, sync, event, wait, graph, malloc, hostalloc, hostfunc, conv, gemm, nccl,
// layout, fault, limit: what the device does, and what the host waits for. A row is kept only while
// recording; a fault is also printed. `stream` is the handle of the stream that has the work, if one has.
void log(const char* kind, const std::string& name, size_t bytes = 0, size_t blocks = 0, size_t threads = 0,
         const void* stream = nullptr);

// Logs a call of an entry point, whatever it does, as a row of kind "call", where gpu_log_start was told to.
// What an entry point calls itself is not logged again.
class Call {
 public:
  explicit Call(const char* name);
  ~Call();
};
#define CALLED const ::gpu::Call this_call(__func__)

// Reports what would be an error or undefined on a GPU. Tests fail on it (see faults() in emulated_gpu.py).
void fault(const std::string& what);

// Whether this thread is inside an operator that aten.cpp computes.
bool in_operator();

}  // namespace gpu
