// How large the sizes that come from arguments may be, and their product without overflow. Torch-free.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace frcnn {

// Along one dimension of a tensor, and of a level's cells or anchors together: kernels count them in 32 bits.
constexpr int64_t kMostAlongOne = INT32_MAX;
// Elements of one tensor, so that its bytes can be counted in 64 bits.
constexpr int64_t kMostElements = INT64_MAX / 16;
// Bins of RoIAlign along one axis, and samples of a bin along one axis: both are loops over every RoI.
constexpr int64_t kMostBinsAlongOne = 1 << 16, kMostSamples = INT16_MAX;

// The product of sizes, none of them negative; INT64_MAX if it is larger.
inline int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t result = 1;
  bool overflows = false;
  for (const int64_t size : sizes) {
    if (size == 0) return 0;
    overflows = overflows || result > INT64_MAX / size;
    if (!overflows) result *= size;
  }
  return overflows ? INT64_MAX : result;
}

}  // namespace frcnn
