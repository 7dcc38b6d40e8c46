// RoIAlign's forward pass over NCHW maps, which needs no copy of them: the inner loops go along the rows of a
// channel's plane. That costs more for each cell than in channels-last maps, so it suits few RoIs.
#pragma once

#include "roi_align_plan.h"
#include "types.h"
#include "vectorize.h"

namespace frcnn {
namespace {

// What an RoI takes of every channel's plane of a map [C, H, W], and how its bins lie.
template <typename T>
struct Window {
  static constexpr int kLanes = 32 / sizeof(T);
  int64_t plane = 0, row = 0;   // sizes
  int64_t left = 0, width = 0;  // of the columns with taps, and more to fill vectors where the plane has them
  int bin_rows = 0, bins = 0, padded_bins = 0;
  std::vector<T> weights;  // [width, padded_bins]
};

// The processor does not see by itself that the next plane's cells lie a plane further on.
template <typename In, typename T>
FRCNN_INLINE void fetch(const In* plane, const Window<T>& window, const Roi<T>& roi) {
#if defined(__GNUC__)
  constexpr int64_t kLine = 64 / sizeof(In);
  for (int64_t cell = roi.rows.front().cell; cell <= roi.rows.back().cell; ++cell) {
    const In* const cells = plane + cell * window.row;
    for (int64_t x = 0; x < window.width; x += kLine) __builtin_prefetch(cells + x);
    __builtin_prefetch(cells + window.width - 1);
  }
#endif
}

// Channels' planes [C, H, W] -> their bins [C, h, w], overwritten. Rows of cells are summed into rows of
// bins, scratch [h, width], and these with the columns' weights, a vector of bins at a time.
template <typename In, typename T>
FRCNN_INLINE void pool_planes(const In* map, const Window<T>& window, const Roi<T>& roi, int64_t channels,
                              T* scratch, T* out) {
  constexpr int kLanes = Window<T>::kLanes;
  for (int64_t c = 0; c < channels; ++c) {
    const In* const plane = map + c * window.plane + window.left;
    if (c + 1 < channels) fetch(plane + window.plane, window, roi);
    std::fill_n(scratch, window.bin_rows * window.width, T(0));
    for (const Tap<T>& tap : roi.rows) {
      const In* const cells = plane + tap.cell * window.row;
      T* const sums = scratch + tap.bin * window.width;
      for (int64_t x = 0; x < window.width; ++x) sums[x] += tap.weight * widen(cells[x]);
    }
    for (int row = 0; row < window.bin_rows; ++row) {
      const T* const sums = scratch + row * window.width;
      for (int first = 0; first < window.bins; first += kLanes) {
        T total[kLanes] = {};
        const T* weights = window.weights.data() + first;
        for (int64_t x = 0; x < window.width; ++x, weights += window.padded_bins) {
          for (int i = 0; i < kLanes; ++i) total[i] += sums[x] * weights[i];
        }
        const int count = std::min(kLanes, window.bins - first);
        for (int i = 0; i < count; ++i) *out++ = total[i];
      }
    }
  }
}

FRCNN_VECTORIZED void pool_window(const float* map, const Window<float>& window, const Roi<float>& roi,
                                  int64_t channels, float* scratch, float* out) {
  pool_planes(map, window, roi, channels, scratch, out);
}
FRCNN_VECTORIZED void pool_window(const double* map, const Window<double>& window, const Roi<double>& roi,
                                  int64_t channels, double* scratch, double* out) {
  pool_planes(map, window, roi, channels, scratch, out);
}
FRCNN_VECTORIZED void pool_window(const Half* map, const Window<float>& window, const Roi<float>& roi,
                                  int64_t channels, float* scratch, float* out) {
  pool_planes(map, window, roi, channels, scratch, out);
}
FRCNN_VECTORIZED void pool_window(const BFloat16* map, const Window<float>& window, const Roi<float>& roi,
                                  int64_t channels, float* scratch, float* out) {
  pool_planes(map, window, roi, channels, scratch, out);
}

template <typename T>
Window<T> window_of(const Plan<T>& plan, const Roi<T>& roi) {
  constexpr int kLanes = Window<T>::kLanes;
  const int64_t row = plan.pooling.sizes[2 * roi.level + 1];
  const auto [first, last] =
      std::minmax_element(roi.columns.begin(), roi.columns.end(),
                          [](const Tap<T>& a, const Tap<T>& b) { return a.cell < b.cell; });
  const int64_t most = (last->cell - first->cell + kLanes) / kLanes * kLanes, width = std::min(most, row);
  const int bins = plan.bins(), padded = (bins + kLanes - 1) / kLanes * kLanes;
  Window<T> window{plan.pooling.sizes[2 * roi.level] * row,
                   row,
                   std::min<int64_t>(first->cell, row - width),
                   width,
                   static_cast<int>(plan.pooling.pooled_height),
                   bins,
                   padded,
                   std::vector<T>(width * padded)};
  for (const Tap<T>& tap : roi.columns)
    window.weights[(tap.cell - window.left) * padded + tap.bin] += tap.weight;
  return window;
}

// maps: one [B, C, H, W] of In per level -> out [K, C, h, w], overwritten.
// A task takes a few channels of one map and pools all its RoIs from them: a plane is many pages of memory,
// and an RoI has a few cells on each.
template <typename In, typename T>
void pool_planar(const void* const* maps, const Plan<T>& plan, T* out) {
  constexpr int64_t kChannels = 8;
  const int64_t channels = plan.pooling.channels, blocks = (channels + kChannels - 1) / kChannels;
  const int64_t pooled_size = plan.pooled_size();
  std::vector<Window<T>> windows(plan.rois.size());
  for (size_t k = 0; k < windows.size(); ++k) {
    const Roi<T>& roi = plan.rois[k];
    if (roi.rows.empty() || roi.columns.empty()) {
      std::fill_n(out + k * pooled_size, pooled_size, T(0));
    } else {
      windows[k] = window_of(plan, roi);
    }
  }
  parallel_tasks(static_cast<int64_t>(plan.rois_of_map.size()) * blocks, [&](int64_t i) {
    const int64_t map = i / blocks, begin = i % blocks * kChannels;
    const int64_t count = std::min(kChannels, channels - begin);
    const In* const planes = static_cast<const In*>(maps[plan.level(map)]) + plan.offset(map);
    std::vector<T> scratch;
    for (const int64_t k : plan.rois_of_map[map]) {
      const Window<T>& window = windows[k];
      if (window.width == 0) continue;
      scratch.resize(window.bin_rows * window.width);
      pool_window(planes + begin * window.plane, window, plan.rois[k], count, scratch.data(),
                  out + k * pooled_size + begin * window.bin_rows * window.bins);
    }
  });
}

}  // namespace
}  // namespace frcnn
