// What RoIAlign takes of the maps, and with which weights, on CPU.
//
// A sample's bilinear weights are products of a row weight and a column weight (see bilinear.h), so the sum
// over all samples of a bin factorizes: out[bin] = sum_y rows[y] * sum_x columns[x] * feature[y, x]. Each
// axis of an RoI becomes a short list of taps (cell, bin, weight) with the samples already summed, and every
// cell of the map is read about once instead of four times per sample.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../bilinear.h"
#include "../kernel_api.h"
#include "parallel.h"

namespace frcnn {

// The share of one cell in one bin, along one axis.
template <typename T>
struct Tap {
  int cell;
  int bin;
  T weight;
};

template <typename T>
struct Roi {
  int level;
  int64_t image;
  std::vector<Tap<T>> rows;     // by cell, then bin
  std::vector<Tap<T>> columns;  // by bin
  std::vector<int> tiles;       // of a row of cells, that hold the columns; for maps [C, H, W] only
};

template <typename T>
std::vector<Tap<T>> axis_taps(const RoiAxis<T>& axis, int bins, int extent, T factor) {
  std::vector<Tap<T>> taps;
  for (int bin = 0; bin < bins; ++bin) {
    const size_t first = taps.size();
    const auto add = [&](int cell, T weight) {
      if (weight == T(0)) return;
      // Successive samples move by at most a cell or two, so an equal cell is among the last two taps.
      for (size_t i = taps.size(); i > first && i + 2 > taps.size(); --i) {
        if (taps[i - 1].cell == cell) {
          taps[i - 1].weight += weight;
          return;
        }
      }
      taps.push_back({cell, bin, weight});
    };
    int begin, end;
    sample_range(axis, bin, extent, &begin, &end);
    for (int i = begin; i < end; ++i) {
      AxisSample<T> sample;
      if (!sample_axis(axis.coordinate(bin, i), extent, &sample)) continue;
      add(sample.low, sample.low_weight);
      add(sample.high, sample.high_weight);
    }
  }
  for (Tap<T>& tap : taps) tap.weight *= factor;
  return taps;
}

// Every bin of an RoI that cannot be pooled stays without taps, hence zero.
template <typename T>
Roi<T> plan_roi(const T* roi, const FrcnnRoiAlign& pooling) {
  const T *box = roi + 1, finest_scale = static_cast<T>(pooling.finest_scale);
  const int level = roi_level(box[0], box[1], box[2], box[3], finest_scale, static_cast<int>(pooling.levels));
  const int rows = static_cast<int>(pooling.pooled_height), columns = static_cast<int>(pooling.pooled_width);
  const int samples = static_cast<int>(pooling.sampling_ratio);
  const int height = static_cast<int>(pooling.sizes[2 * level]);
  const int width = static_cast<int>(pooling.sizes[2 * level + 1]);
  const T scale = static_cast<T>(pooling.scales[level]);
  Roi<T> plan{level, static_cast<int64_t>(roi[0]), {}, {}, {}};
  RoiAxis<T> x, y;
  if (roi_axis(box[0], box[2], scale, columns, samples, pooling.aligned, &x) &&
      roi_axis(box[1], box[3], scale, rows, samples, pooling.aligned, &y)) {
    plan.rows = axis_taps(y, rows, height, T(1) / sample_count(y, x));
    plan.columns = axis_taps(x, columns, width, T(1));
    std::stable_sort(plan.rows.begin(), plan.rows.end(),
                     [](const Tap<T>& a, const Tap<T>& b) { return a.cell < b.cell; });
  }
  return plan;
}

// What the RoIs of one call ask of the maps: one map per level and image, numbered level * batch + image.
template <typename T>
struct Plan {
  Plan(const FrcnnRoiAlign& pooling, const T* rows)
      : pooling(pooling), rois(pooling.rois), rois_of_map(pooling.levels * pooling.batch) {
    parallel_for(pooling.rois, 64, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) rois[k] = plan_roi(rows + k * 5, pooling);
    });
    for (int64_t k = 0; k < pooling.rois; ++k) {
      const Roi<T>& roi = rois[k];
      if (!roi.rows.empty()) rois_of_map[roi.level * pooling.batch + roi.image].push_back(k);
    }
  }

  int bins() const { return static_cast<int>(pooling.pooled_width); }
  int64_t bin_row() const { return pooling.pooled_width * pooling.channels; }
  int64_t pooled_size() const { return pooling.pooled_height * bin_row(); }
  int64_t level(int64_t map) const { return map / pooling.batch; }
  int64_t height(int64_t map) const { return pooling.sizes[2 * level(map)]; }
  int64_t width(int64_t map) const { return pooling.sizes[2 * level(map) + 1]; }
  int64_t row_size(int64_t map) const { return pooling.sizes[2 * level(map) + 1] * pooling.channels; }
  int64_t offset(int64_t map) const { return map % pooling.batch * height(map) * row_size(map); }
  // Rows of cells that are worked on together, so that they come from the cache for all RoIs but the first.
  int64_t band(int64_t map) const {
    constexpr int64_t kBandBytes = 1 << 20;
    const int64_t row_bytes = row_size(map) * static_cast<int64_t>(sizeof(T));
    return std::max<int64_t>(1, kBandBytes / std::max<int64_t>(1, row_bytes));
  }

  const FrcnnRoiAlign& pooling;
  std::vector<Roi<T>> rois;
  std::vector<std::vector<int64_t>> rois_of_map;  // in order; without those that have no taps
};

}  // namespace frcnn
