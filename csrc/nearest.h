// The nearest cell of a smaller map, as torch's interpolation finds it; shared by CPU and CUDA.
#pragma once

#include "box.h"

namespace frcnn {

// scale: cells of the smaller map per cell
FRCNN_HD int nearest(int at, float scale, int size) {
  const int found = static_cast<int>(floorf(static_cast<float>(at) * scale));
  return found < size - 1 ? found : size - 1;
}

inline float nearest_scale(int64_t size, int64_t of) {
  return static_cast<float>(size) / static_cast<float>(of);
}

}  // namespace frcnn
