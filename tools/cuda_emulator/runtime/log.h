// What happened on the emulated device, one row per call, for counts and for finding what went wrong.
#pragma once

#include <cstddef>
#include <string>

namespace gpu {

// Kinds: launch, memset, memcpy, sync, event, wait, graph, malloc, hostalloc, conv, gemm, layout, fault,
// limit. A row is kept only while recording; a fault is also printed.
void log(const char* kind, const std::string& name, size_t bytes = 0, size_t blocks = 0, size_t threads = 0);
// Reports what would be an error or undefined on a GPU. Tests fail on it (see faults() in emulated_gpu.py).
void fault(const std::string& what);

// Whether this thread is inside an operator that aten.cpp computes.
bool in_operator();

}  // namespace gpu
