// What was found wrong.
#pragma once

#include <cstddef>
#include <string>

namespace emulator::reports {

void add(const std::string& message);
size_t count();
std::string take();

}  // namespace emulator::reports
