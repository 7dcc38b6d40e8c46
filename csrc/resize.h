// cv2.resize with INTER_LINEAR of 8-bit images, to the bit: shared by CPU and CUDA. Weights are rounded to 11
// bits, a row's sum keeps all of them, and the two rows' sum loses what the shifts take. Along a row what
// lies beyond an end has no weight; along a column it is the end's pixel again, which rounds otherwise. An
// image of exactly half the size in both directions is the mean of four pixels instead, as there.
#pragma once

#include <cmath>
#include <cstdint>

#include "box.h"
#include "kernel_api.h"

namespace frcnn {

// The two pixels along one axis that one of the result is made of.
struct Taps {
  int low, high, low_weight, high_weight;
};

// scale: old pixels per new one, as cv2 computes it: 1 / (new / old)
FRCNN_HD Taps taps_of(int at, double scale, int size, bool along_row) {
  float part = static_cast<float>((at + 0.5) * scale - 0.5);
  const int low = static_cast<int>(floorf(part));
  part -= static_cast<float>(low);
  if (along_row && (low < 0 || low >= size - 1)) part = 0.0f;
  return {clamp(low, 0, size - 1), clamp(low + 1, 0, size - 1),
          static_cast<int>(rintf((1.0f - part) * 2048.0f)), static_cast<int>(rintf(part * 2048.0f))};
}

inline double scale_of(int64_t old_size, int64_t new_size) {
  return 1.0 / (static_cast<double>(new_size) / static_cast<double>(old_size));
}

inline bool is_halved(const FrcnnImage& image) {
  return image.height == 2 * image.new_height && image.width == 2 * image.new_width;
}

// Of one channel: the four pixels, by row and column.
FRCNN_HD uint8_t mean_of(int a, int b, int c, int d) {
  return static_cast<uint8_t>((a + b + c + d + 2) >> 2);
}
FRCNN_HD int along_row(int low, int high, const Taps& x) { return low * x.low_weight + high * x.high_weight; }
FRCNN_HD uint8_t along_column(int low, int high, const Taps& y) {
  const int sum = (y.low_weight * (low >> 4) >> 16) + (y.high_weight * (high >> 4) >> 16);
  return static_cast<uint8_t>((sum + 2) >> 2);
}

}  // namespace frcnn
