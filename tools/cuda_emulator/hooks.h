// Every load and store of the kernels, before it is done, in the builds that instrument them (hooks.cpp).
// Defined by checker.cpp and counters.cpp.
#pragma once

#include <cstddef>

namespace emulator {

void on_read(const void* address, size_t bytes, const void* pc);
void on_write(void* address, size_t bytes, const void* pc);

}  // namespace emulator
