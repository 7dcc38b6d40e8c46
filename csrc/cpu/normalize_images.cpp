// Pixels to the network's input. A channel's pixel has 256 values, so each channel has a table of what
// becomes of them, computed once in the arithmetic of the result, and a pixel is three reads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "types.h"

namespace frcnn {
namespace {

template <typename T>
void normalize_row(const uint8_t* pixels, const std::vector<T>& tables, bool reverse, int64_t count,
                   int64_t width, T* out) {
  const int channels[3] = {reverse ? 2 : 0, 1, reverse ? 0 : 2};
  const T* const table[3] = {tables.data(), tables.data() + 256, tables.data() + 512};
  for (int64_t x = 0; x < count; ++x) {
    for (int c = 0; c < 3; ++c) out[3 * x + c] = table[c][pixels[3 * x + channels[c]]];
  }
  std::fill(out + 3 * count, out + 3 * width, T{});
}

// Of other than three channels, which are never reversed.
template <typename T>
void normalize_channels(const uint8_t* pixels, const std::vector<T>& tables, int64_t channels, int64_t count,
                        int64_t width, T* out) {
  for (int64_t i = 0; i < count * channels; ++i) out[i] = tables[256 * (i % channels) + pixels[i]];
  std::fill(out + channels * count, out + channels * width, T{});
}

// How many of `most` rows or columns lie before `size`, which may be any number.
int64_t inside(float size, int64_t most) {
  if (!(size > 0.0f)) return 0;
  return size < static_cast<float>(most) ? static_cast<int64_t>(std::ceil(size)) : most;
}

}  // namespace
}  // namespace frcnn

void frcnn_cpu_normalize_images(int64_t type, const uint8_t* images, const float* sizes, const double* mean,
                                const double* std, bool reverse, int64_t batch, int64_t height, int64_t width,
                                int64_t channels, void* out) {
  using namespace frcnn;
  for_half_or_float(type, [&](auto number) {
    using T = decltype(number);
    std::vector<T> tables(channels * 256);
    for (int64_t c = 0; c < channels; ++c) {
      const float shift = static_cast<float>(mean[c]), scale = static_cast<float>(std[c]);
      for (int v = 0; v < 256; ++v) tables[256 * c + v] = narrow<T>((static_cast<float>(v) - shift) / scale);
    }
    parallel_for(batch * height, 32, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float* size = sizes + row / height * 2;
        const int64_t count = row % height < inside(size[0], height) ? inside(size[1], width) : 0;
        const uint8_t* const pixels = images + row * width * channels;
        T* const to = static_cast<T*>(out) + row * width * channels;
        if (channels == 3) {
          normalize_row(pixels, tables, reverse, count, width, to);
        } else {
          normalize_channels(pixels, tables, channels, count, width, to);
        }
      }
    });
  });
}
