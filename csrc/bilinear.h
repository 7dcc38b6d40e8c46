// Where RoIAlign samples, as torch-free arithmetic that the CPU and CUDA kernels share.
//
// An RoI is cut into bins, a bin holds a grid of sample points, and a sample is the bilinear mean of
// four cells. Rows and columns are independent: a sample's weights are the products of one row weight
// and one column weight, and it lies outside the map if either coordinate does. Everything here is
// therefore about one axis. Semantics are those of mmcv's RoIAlign in "avg" mode; He et al., "Mask R-CNN",
// 2017, section 3.
#pragma once

#include <cmath>

#include "box.h"

namespace frcnn {

// An RoI with an edge further than this from the origin of its feature map, in cells, or with a NaN
// coordinate, pools to zero. It keeps every integer below exact in float32 and within int.
constexpr int kMaxRoiCoordinate = 1 << 20;

// The part of an RoI along one axis, in cells of the feature map.
template <typename T>
struct RoiAxis {
  T start;   // of the first bin
  T bin;     // size of a bin
  int grid;  // sample points per bin; 0 or less: none

  FRCNN_HD T coordinate(int bin_index, int sample) const {
    return start + static_cast<T>(bin_index) * bin +
           (static_cast<T>(sample) + static_cast<T>(0.5)) * bin / static_cast<T>(grid);
  }
};

// low, high: the RoI's edges in image pixels; scale: cells per pixel. sampling_ratio 0 takes as many
// sample points as a bin has cells, rounded up. `aligned` puts cell centers at half integers; without it
// an RoI is at least one cell wide. False if the RoI cannot be pooled (see kMaxRoiCoordinate).
template <typename T>
FRCNN_HD bool roi_axis(T low, T high, T scale, int bins, int sampling_ratio, bool aligned, RoiAxis<T>* axis) {
  const T offset = aligned ? static_cast<T>(0.5) : static_cast<T>(0);
  const T start = low * scale - offset;
  const T end = high * scale - offset;
  const T limit = static_cast<T>(kMaxRoiCoordinate);
  if (!(start > -limit && start < limit && end > -limit && end < limit)) return false;
  T size = end - start;
  if (!aligned && size < static_cast<T>(1)) size = static_cast<T>(1);
  axis->start = start;
  axis->bin = size / static_cast<T>(bins);
  axis->grid = sampling_ratio > 0 ? sampling_ratio : static_cast<int>(std::ceil(size / static_cast<T>(bins)));
  return true;
}

// The samples of a bin that can lie in [-1, extent], as a half-open range that may hold a few more. It
// bounds the work by the map's size, however large the RoI.
template <typename T>
FRCNN_HD void sample_range(const RoiAxis<T>& axis, int bin_index, int extent, int* begin, int* end) {
  *begin = 0;
  *end = axis.grid > 0 ? axis.grid : 0;
  const T step = axis.bin / static_cast<T>(axis.grid);
  if (!(step > static_cast<T>(0))) return;
  const T base = axis.start + static_cast<T>(bin_index) * axis.bin;
  const T first = (static_cast<T>(-1) - base) / step - static_cast<T>(3);
  const T last = (static_cast<T>(extent) - base) / step + static_cast<T>(3);
  const T count = static_cast<T>(*end);
  if (first > static_cast<T>(0)) *begin = first < count ? static_cast<int>(first) : *end;
  if (last < count) *end = last > static_cast<T>(0) ? static_cast<int>(last) : 0;
}

template <typename T>
struct AxisSample {
  int low, high;  // cells; equal at the last cell
  T low_weight, high_weight;
};

// The two cells that a coordinate falls between. Coordinates in [-1, 0) and beyond the last cell's center
// count as on the border; further out (or NaN, or on a map without cells) there is no sample: false.
template <typename T>
FRCNN_HD bool sample_axis(T coordinate, int extent, AxisSample<T>* sample) {
  if (extent <= 0 || !(coordinate >= static_cast<T>(-1) && coordinate <= static_cast<T>(extent)))
    return false;
  if (coordinate < static_cast<T>(0)) coordinate = static_cast<T>(0);
  sample->low = static_cast<int>(coordinate);
  if (sample->low >= extent - 1) {
    sample->low = sample->high = extent - 1;
    coordinate = static_cast<T>(sample->low);
  } else {
    sample->high = sample->low + 1;
  }
  sample->high_weight = coordinate - static_cast<T>(sample->low);
  sample->low_weight = static_cast<T>(1) - sample->high_weight;
  return true;
}

// The divisor of a bin's sum: all its sample points, those outside the map included.
template <typename T>
FRCNN_HD T sample_count(const RoiAxis<T>& y, const RoiAxis<T>& x) {
  const T rows = static_cast<T>(y.grid > 0 ? y.grid : 0);
  const T columns = static_cast<T>(x.grid > 0 ? x.grid : 0);
  return rows * columns > static_cast<T>(1) ? rows * columns : static_cast<T>(1);
}

// The pyramid level of an RoI, clamp(floor(log2(sqrt(area) / finest_scale + 1e-6)), 0, levels - 1)
// (Lin et al., "Feature Pyramid Networks", 2017, eq. 1, with finest_scale in place of 224 / 4), written with
// comparisons so that every device agrees on the boundary. NaN and negative areas take level 0.
template <typename T>
FRCNN_HD int roi_level(T x1, T y1, T x2, T y2, T finest_scale, int levels) {
  const T size = std::sqrt((x2 - x1) * (y2 - y1)) / finest_scale + static_cast<T>(1e-6);
  int level = 0;
  T threshold = static_cast<T>(2);
  while (level < levels - 1 && size >= threshold) {
    ++level;
    threshold *= static_cast<T>(2);
  }
  return level;
}

}  // namespace frcnn
