// Whether and how wide winograd_conv runs here, as the operator and the Python module ask.
#pragma once

#include <cstdlib>
#include <string_view>

#include "binding.h"

namespace frcnn {

constexpr char kWinogradNeeds[] =
    ": needs a CPU with AVX2 and FMA, AVX-512 or NEON, torch using it, and a build by gcc or clang";

// Vectors as wide as torch's own, which the environment limits; 0 where there are none.
inline int64_t winograd_lanes() {
  static const int64_t lanes = [] {
    const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string_view capability = limit == nullptr ? "" : limit;
    return frcnn_cpu_winograd_lanes(capability == "default" ? 4 : capability == "avx2" ? 8 : 16);
  }();
  return lanes;
}

}  // namespace frcnn
