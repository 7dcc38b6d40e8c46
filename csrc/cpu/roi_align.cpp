// RoIAlign on CPU, forward and backward.
//
// A sample's bilinear weights are products of a row weight and a column weight (see bilinear.h), so the sum
// over all samples of a bin factorises: out[bin] = sum_y rows[y] * sum_x columns[x] * feature[y, x]. Each
// axis of an RoI becomes a short list of taps (cell, bin, weight) with the samples already summed, and every
// cell of the map is read about once instead of four times per sample. Features are channels-last: a cell is
// one contiguous run over channels, which is what the inner loops vectorise over.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zero.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "../bilinear.h"
#include "../checks.h"
#include "vectorize.h"

namespace frcnn {
namespace {

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

struct Pooling {
  Pooling(at::IntArrayRef output_size, std::vector<int64_t> sizes, at::ArrayRef<double> scales,
          int64_t sampling_ratio, bool aligned, double finest_scale)
      : height(static_cast<int>(output_size[0])),
        width(static_cast<int>(output_size[1])),
        sizes(std::move(sizes)),
        scales(scales.vec()),
        sampling_ratio(static_cast<int>(sampling_ratio)),
        aligned(aligned),
        finest_scale(finest_scale) {}

  int height, width;           // bins
  std::vector<int64_t> sizes;  // of the maps, in cells: H0, W0, H1, W1, ...
  std::vector<double> scales;  // cells per image pixel, one per level
  int sampling_ratio;
  bool aligned;
  double finest_scale;
};

// Every bin of an RoI that cannot be pooled stays without taps, hence zero.
template <typename T>
Roi<T> plan_roi(const T* roi, const Pooling& pooling) {
  const T *box = roi + 1, finest_scale = static_cast<T>(pooling.finest_scale);
  const int level =
      roi_level(box[0], box[1], box[2], box[3], finest_scale, static_cast<int>(pooling.scales.size()));
  const int height = static_cast<int>(pooling.sizes[2 * level]);
  const int width = static_cast<int>(pooling.sizes[2 * level + 1]);
  const T scale = static_cast<T>(pooling.scales[level]);
  Roi<T> plan{level, static_cast<int64_t>(roi[0]), {}, {}};
  RoiAxis<T> x, y;
  if (roi_axis(box[0], box[2], scale, pooling.width, pooling.sampling_ratio, pooling.aligned, &x) &&
      roi_axis(box[1], box[3], scale, pooling.height, pooling.sampling_ratio, pooling.aligned, &y)) {
    plan.rows = axis_taps(y, pooling.height, height, T(1) / sample_count(y, x));
    plan.columns = axis_taps(x, pooling.width, width, T(1));
    std::stable_sort(plan.rows.begin(), plan.rows.end(),
                     [](const Tap<T>& a, const Tap<T>& b) { return a.cell < b.cell; });
  }
  return plan;
}

template <typename T>
void check_image_indices(const T* rois, int64_t count, int64_t batch) {
  for (int64_t k = 0; k < count; ++k) {
    const T image = rois[k * 5];
    TORCH_CHECK_INDEX(image >= T(0) && image < static_cast<T>(batch), "roi_align: rois[", k,
                      "] belongs to image ", image, ", but the features are a batch of ", batch);
  }
}

// ---- inner loops ------------------------------------------------------------------------------------------

template <typename T>
struct Vector {
  // 64 bytes, at any element's address.
  typedef T type __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  static constexpr int kLanes = 64 / sizeof(T);
};

// out[c] = sum of weight * row[cell * channels + c] over the taps, for `kCount` vectors of channels
template <int kCount, typename T>
FRCNN_INLINE void sum_taps(const T* row, const Tap<T>* first, const Tap<T>* last, int64_t channels, T* out) {
  using V = typename Vector<T>::type;
  V sum[kCount] = {};
  for (const Tap<T>* tap = first; tap < last; ++tap) {
    const V* in = reinterpret_cast<const V*>(row + tap->cell * channels);
    for (int j = 0; j < kCount; ++j) sum[j] += tap->weight * in[j];
  }
  for (int j = 0; j < kCount; ++j) reinterpret_cast<V*>(out)[j] = sum[j];
}

// out += weight * in
template <typename T>
FRCNN_INLINE void add_scaled(T* __restrict__ out, const T* __restrict__ in, T weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += weight * in[i];
}

// The taps of cell rows from `row` on.
template <typename T>
FRCNN_INLINE auto first_tap(const Roi<T>& roi, int64_t row) {
  return std::lower_bound(roi.rows.begin(), roi.rows.end(), row,
                          [](const Tap<T>& tap, int64_t row) { return tap.cell < row; });
}

// Adds the cell rows [begin, end) of map [H, W, C] to out [h, w, C]; scratch [w, C]. A row of cells is summed
// into one row of bins first, then added to the one or two bin rows that it belongs to.
template <typename T>
FRCNN_INLINE void pool_rows(const T* map, int64_t row_size, const Roi<T>& roi, int bins, int64_t channels,
                            int64_t begin, int64_t end, T* scratch, T* out) {
  constexpr int kLanes = Vector<T>::kLanes, kBlock = 8;
  const int64_t bin_row = bins * channels;
  const Tap<T>* const columns_end = roi.columns.data() + roi.columns.size();
  for (auto tap = first_tap(roi, begin); tap != roi.rows.end() && tap->cell < end;) {
    const int64_t cell = tap->cell;
    const T* row = map + cell * row_size;
    const Tap<T>* last = roi.columns.data();
    for (int bin = 0; bin < bins; ++bin) {
      const Tap<T>* const first = last;
      while (last < columns_end && last->bin == bin) ++last;
      T* sums = scratch + bin * channels;
      int64_t c = 0;
      for (; c + kBlock * kLanes <= channels; c += kBlock * kLanes) {
        sum_taps<kBlock>(row + c, first, last, channels, sums + c);
      }
      for (; c + kLanes <= channels; c += kLanes) sum_taps<1>(row + c, first, last, channels, sums + c);
      for (; c < channels; ++c) {
        T sum = 0;
        for (const Tap<T>* t = first; t < last; ++t) sum += t->weight * row[t->cell * channels + c];
        sums[c] = sum;
      }
    }
    for (; tap != roi.rows.end() && tap->cell == cell; ++tap) {
      add_scaled(out + tap->bin * bin_row, scratch, tap->weight, bin_row);
    }
  }
}

// The transpose of pool_rows: grad [h, w, C] is added to the cell rows [begin, end) of map [H, W, C].
template <typename T>
FRCNN_INLINE void spread_rows(const T* grad, int64_t row_size, const Roi<T>& roi, int bins, int64_t channels,
                              int64_t begin, int64_t end, T* scratch, T* map) {
  const int64_t bin_row = bins * channels;
  for (auto tap = first_tap(roi, begin); tap != roi.rows.end() && tap->cell < end;) {
    const int64_t cell = tap->cell;
    std::fill_n(scratch, bin_row, T(0));
    for (; tap != roi.rows.end() && tap->cell == cell; ++tap) {
      add_scaled(scratch, grad + tap->bin * bin_row, tap->weight, bin_row);
    }
    for (const Tap<T>& column : roi.columns) {
      add_scaled(map + cell * row_size + column.cell * channels, scratch + column.bin * channels,
                 column.weight, channels);
    }
  }
}

FRCNN_VECTORIZED void pool_roi(const float* map, int64_t row_size, const Roi<float>& roi, int bins,
                               int64_t channels, int64_t begin, int64_t end, float* scratch, float* out) {
  pool_rows(map, row_size, roi, bins, channels, begin, end, scratch, out);
}
FRCNN_VECTORIZED void pool_roi(const double* map, int64_t row_size, const Roi<double>& roi, int bins,
                               int64_t channels, int64_t begin, int64_t end, double* scratch, double* out) {
  pool_rows(map, row_size, roi, bins, channels, begin, end, scratch, out);
}
FRCNN_VECTORIZED void spread_roi(const float* grad, int64_t row_size, const Roi<float>& roi, int bins,
                                 int64_t channels, int64_t begin, int64_t end, float* scratch, float* map) {
  spread_rows(grad, row_size, roi, bins, channels, begin, end, scratch, map);
}
FRCNN_VECTORIZED void spread_roi(const double* grad, int64_t row_size, const Roi<double>& roi, int bins,
                                 int64_t channels, int64_t begin, int64_t end, double* scratch, double* map) {
  spread_rows(grad, row_size, roi, bins, channels, begin, end, scratch, map);
}

// ---- work over threads ------------------------------------------------------------------------------------

// Runs task(i) for every i below count; a free thread takes the next one, since tasks differ in size.
template <typename F>
void parallel_tasks(int64_t count, const F& task) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

// What the RoIs of one call ask of the maps: one map per level and image, numbered level * batch + image.
template <typename T>
struct Plan {
  Plan(const T* rois, int64_t count, const Pooling& pooling, int64_t batch, int64_t channels)
      : batch(batch), rois(count), rois_of_map(pooling.scales.size() * batch) {
    at::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) this->rois[k] = plan_roi(rois + k * 5, pooling);
    });
    for (int64_t k = 0; k < count; ++k) {
      const Roi<T>& roi = this->rois[k];
      if (!roi.rows.empty()) rois_of_map[roi.level * batch + roi.image].push_back(k);
    }
    for (size_t level = 0; level < pooling.scales.size(); ++level) {
      heights.push_back(pooling.sizes[2 * level]);
      row_sizes.push_back(pooling.sizes[2 * level + 1] * channels);
    }
  }

  int64_t level(int64_t map) const { return map / batch; }
  int64_t height(int64_t map) const { return heights[level(map)]; }
  int64_t row_size(int64_t map) const { return row_sizes[level(map)]; }
  int64_t offset(int64_t map) const { return map % batch * height(map) * row_size(map); }
  // Rows of cells that are worked on together, so that they come from the cache for all RoIs but the first.
  int64_t band(int64_t map) const {
    constexpr int64_t kBandBytes = 1 << 20;
    const int64_t row_bytes = row_size(map) * static_cast<int64_t>(sizeof(T));
    return std::max<int64_t>(1, kBandBytes / std::max<int64_t>(1, row_bytes));
  }

  int64_t batch;
  std::vector<Roi<T>> rois;
  std::vector<std::vector<int64_t>> rois_of_map;  // in order; without those that have no taps
  std::vector<int64_t> heights, row_sizes;        // per level
};

// maps: one [B, H, W, C] per level, rois [K, 5] -> out [K, h, w, C], zero on entry.
// A task takes RoIs of one map that begin near each other and goes down the map with all of them.
template <typename T>
void pool(const std::vector<const T*>& maps, Plan<T>& plan, const Pooling& pooling, int64_t channels,
          T* out) {
  struct Chunk {
    int64_t map, begin, end;  // of rois_of_map[map]
  };
  const int64_t bin_row = pooling.width * channels;
  const int64_t target = static_cast<int64_t>(plan.rois.size()) / (4 * at::get_num_threads()) + 1;
  std::vector<Chunk> chunks;
  for (size_t map = 0; map < plan.rois_of_map.size(); ++map) {
    auto& own = plan.rois_of_map[map];
    std::stable_sort(own.begin(), own.end(), [&](int64_t a, int64_t b) {
      return plan.rois[a].rows.front().cell < plan.rois[b].rows.front().cell;
    });
    const int64_t count = static_cast<int64_t>(own.size());
    for (int64_t i = 0; i < count; i += target) {
      chunks.push_back({static_cast<int64_t>(map), i, std::min(i + target, count)});
    }
  }
  parallel_tasks(static_cast<int64_t>(chunks.size()), [&](int64_t i) {
    const Chunk& chunk = chunks[i];
    const auto& own = plan.rois_of_map[chunk.map];
    const T* map = maps[plan.level(chunk.map)] + plan.offset(chunk.map);
    const int64_t band = plan.band(chunk.map), height = plan.height(chunk.map);
    std::vector<T> scratch(bin_row);
    for (int64_t row = plan.rois[own[chunk.begin]].rows.front().cell; row < height; row += band) {
      for (int64_t j = chunk.begin; j < chunk.end; ++j) {
        const Roi<T>& roi = plan.rois[own[j]];
        if (roi.rows.front().cell >= row + band) break;
        if (roi.rows.back().cell < row) continue;
        pool_roi(map, plan.row_size(chunk.map), roi, pooling.width, channels, row, row + band, scratch.data(),
                 out + own[j] * pooling.height * bin_row);
      }
    }
  });
}

// grad [K, h, w, C] -> maps: one [B, H, W, C] per level, overwritten.
// A band of map rows belongs to one task, which adds the RoIs in their order: no atomics, and the same sums
// whatever the number of threads.
template <typename T>
void spread(const T* grad, const Plan<T>& plan, const Pooling& pooling, int64_t channels,
            const std::vector<T*>& maps) {
  struct Band {
    int64_t map, begin, end;  // rows [begin, end)
  };
  const int64_t bin_row = pooling.width * channels;
  std::vector<Band> bands;
  for (int64_t map = 0; map < static_cast<int64_t>(plan.rois_of_map.size()); ++map) {
    const int64_t height = plan.height(map), band = plan.band(map);
    for (int64_t row = 0; row < height; row += band)
      bands.push_back({map, row, std::min(row + band, height)});
  }
  parallel_tasks(static_cast<int64_t>(bands.size()), [&](int64_t i) {
    const Band& band = bands[i];
    const int64_t row_size = plan.row_size(band.map);
    T* map = maps[plan.level(band.map)] + plan.offset(band.map);
    std::fill(map + band.begin * row_size, map + band.end * row_size, T(0));
    std::vector<T> scratch(bin_row);
    for (const int64_t k : plan.rois_of_map[band.map]) {
      spread_roi(grad + k * pooling.height * bin_row, row_size, plan.rois[k], pooling.width, channels,
                 band.begin, band.end, scratch.data(), map);
    }
  });
}

// ---- operators --------------------------------------------------------------------------------------------

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// float64 stays, everything else is computed in float32.
at::ScalarType compute_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, at::IntArrayRef output_size,
                     at::ArrayRef<double> scales, int64_t sampling_ratio, bool aligned, double finest_scale) {
  check_roi_align(features, rois, output_size, scales, sampling_ratio, finest_scale);
  const at::Tensor& first = features[0];
  const int64_t batch = first.size(0), channels = first.size(1), count = rois.size(0);
  const auto type = compute_type(first.scalar_type());
  Pooling pooling{output_size, {}, scales, sampling_ratio, aligned, finest_scale};
  const at::Tensor rows = rois.contiguous();
  std::vector<at::Tensor> maps;
  for (const at::Tensor& feature : features) {
    maps.push_back(feature.to(type).contiguous(kChannelsLast));
    pooling.sizes.insert(pooling.sizes.end(), {feature.size(2), feature.size(3)});
  }
  auto out = at::empty({count, channels, pooling.height, pooling.width},
                       first.options().dtype(type).memory_format(kChannelsLast));
  out.zero_();
  AT_DISPATCH_FLOATING_TYPES(type, "roi_align", [&] {
    std::vector<const scalar_t*> pointers;
    for (const at::Tensor& map : maps) pointers.push_back(map.const_data_ptr<scalar_t>());
    const scalar_t* roi_rows = rows.const_data_ptr<scalar_t>();
    check_image_indices(roi_rows, count, batch);
    Plan<scalar_t> plan(roi_rows, count, pooling, batch, channels);
    pool(pointers, plan, pooling, channels, out.mutable_data_ptr<scalar_t>());
  });
  const bool channels_last = first.is_contiguous(kChannelsLast) && !first.is_contiguous();
  return out.to(first.scalar_type()).contiguous(channels_last ? kChannelsLast : at::MemoryFormat::Contiguous);
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& rois,
                                           at::IntArrayRef sizes, int64_t batch, at::ArrayRef<double> scales,
                                           int64_t sampling_ratio, bool aligned, double finest_scale) {
  check_roi_align_backward(grad, rois, sizes, batch, scales, sampling_ratio, finest_scale);
  const int64_t channels = grad.size(1), count = rois.size(0);
  const auto type = compute_type(grad.scalar_type());
  const at::Tensor source = grad.to(type).contiguous(kChannelsLast), rows = rois.contiguous();
  const Pooling pooling{grad.sizes().slice(2), sizes.vec(), scales, sampling_ratio, aligned, finest_scale};
  std::vector<at::Tensor> grads;
  for (size_t level = 0; level < scales.size(); ++level) {
    grads.push_back(at::empty({batch, channels, sizes[2 * level], sizes[2 * level + 1]},
                              source.options().memory_format(kChannelsLast)));
  }
  AT_DISPATCH_FLOATING_TYPES(type, "roi_align_backward", [&] {
    std::vector<scalar_t*> pointers;
    for (const at::Tensor& map : grads) pointers.push_back(map.mutable_data_ptr<scalar_t>());
    const scalar_t* roi_rows = rows.const_data_ptr<scalar_t>();
    check_image_indices(roi_rows, count, batch);
    const Plan<scalar_t> plan(roi_rows, count, pooling, batch, channels);
    spread(source.const_data_ptr<scalar_t>(), plan, pooling, channels, pointers);
  });
  for (at::Tensor& map : grads) map = map.to(grad.scalar_type());
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CPU, m) {
  m.impl("roi_align", &roi_align);
  m.impl("roi_align_backward", &roi_align_backward);
}

}  // namespace frcnn
