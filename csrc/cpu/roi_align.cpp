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

// map [H, W, C] -> out [h, w, C], zero on entry; scratch [w, C]. Each row of cells is summed into the bins of
// one row first, then added to the one or two bin rows that it belongs to.
template <typename T>
FRCNN_INLINE void pool_rows(const T* map, int64_t row_size, const Roi<T>& roi, int bins, int64_t channels,
                            T* scratch, T* out) {
  constexpr int kLanes = Vector<T>::kLanes, kBlock = 8;
  const int64_t bin_row = bins * channels;
  const Tap<T>* const end = roi.columns.data() + roi.columns.size();
  for (auto tap = roi.rows.begin(); tap != roi.rows.end();) {
    const int64_t cell = tap->cell;
    const T* row = map + cell * row_size;
    const Tap<T>* last = roi.columns.data();
    for (int bin = 0; bin < bins; ++bin) {
      const Tap<T>* const first = last;
      while (last < end && last->bin == bin) ++last;
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

// The transpose of pool_rows for the cell rows [begin, end): grad [h, w, C] is added to map [H, W, C].
template <typename T>
FRCNN_INLINE void spread_rows(const T* grad, int64_t row_size, const Roi<T>& roi, int bins, int64_t channels,
                              int64_t begin, int64_t end, T* scratch, T* map) {
  const int64_t bin_row = bins * channels;
  auto tap = std::lower_bound(roi.rows.begin(), roi.rows.end(), begin,
                              [](const Tap<T>& t, int64_t row) { return t.cell < row; });
  while (tap != roi.rows.end() && tap->cell < end) {
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
                               int64_t channels, float* scratch, float* out) {
  pool_rows(map, row_size, roi, bins, channels, scratch, out);
}
FRCNN_VECTORIZED void pool_roi(const double* map, int64_t row_size, const Roi<double>& roi, int bins,
                               int64_t channels, double* scratch, double* out) {
  pool_rows(map, row_size, roi, bins, channels, scratch, out);
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

// maps: one [B, H, W, C] per level, rois [K, 5] -> out [K, h, w, C], zero on entry
template <typename T>
void pool(const std::vector<const T*>& maps, const T* rois, int64_t count, const Pooling& pooling,
          int64_t channels, T* out) {
  parallel_tasks(count, [&](int64_t k) {
    const Roi<T> roi = plan_roi(rois + k * 5, pooling);
    const int64_t height = pooling.sizes[2 * roi.level];
    const int64_t row_size = pooling.sizes[2 * roi.level + 1] * channels;
    std::vector<T> scratch(pooling.width * channels);
    pool_roi(maps[roi.level] + roi.image * height * row_size, row_size, roi, pooling.width, channels,
             scratch.data(), out + k * pooling.height * pooling.width * channels);
  });
}

// grad [K, h, w, C], rois [K, 5] -> maps: one [B, H, W, C] per level, overwritten.
// A band of map rows belongs to one task, which adds the RoIs in their order: no atomics, and the same sums
// whatever the number of threads. A band stays in the cache meanwhile.
template <typename T>
void spread(const T* grad, const T* rois, int64_t count, const Pooling& pooling, int64_t batch,
            int64_t channels, const std::vector<T*>& maps) {
  struct Band {
    int64_t map, begin, end;  // map: level * batch + image; rows [begin, end)
  };
  constexpr int64_t kBandBytes = 1 << 19;
  const int64_t levels = static_cast<int64_t>(maps.size());
  std::vector<Band> bands;
  for (int64_t map = 0; map < levels * batch; ++map) {
    const int64_t height = pooling.sizes[2 * (map / batch)], width = pooling.sizes[2 * (map / batch) + 1];
    const int64_t row_bytes = width * channels * static_cast<int64_t>(sizeof(T));
    const int64_t rows = std::max<int64_t>(1, kBandBytes / std::max<int64_t>(1, row_bytes));
    for (int64_t row = 0; row < height; row += rows)
      bands.push_back({map, row, std::min(row + rows, height)});
  }

  std::vector<Roi<T>> plans(count);
  at::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) plans[k] = plan_roi(rois + k * 5, pooling);
  });
  std::vector<std::vector<int64_t>> rois_of_map(levels * batch);
  for (int64_t k = 0; k < count; ++k) rois_of_map[plans[k].level * batch + plans[k].image].push_back(k);

  parallel_tasks(static_cast<int64_t>(bands.size()), [&](int64_t i) {
    const Band& band = bands[i];
    const int64_t level = band.map / batch;
    const int64_t height = pooling.sizes[2 * level], row_size = pooling.sizes[2 * level + 1] * channels;
    T* map = maps[level] + band.map % batch * height * row_size;
    std::fill(map + band.begin * row_size, map + band.end * row_size, T(0));
    std::vector<T> scratch(pooling.width * channels);
    for (const int64_t k : rois_of_map[band.map]) {
      spread_roi(grad + k * pooling.height * pooling.width * channels, row_size, plans[k], pooling.width,
                 channels, band.begin, band.end, scratch.data(), map);
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
    pool(pointers, roi_rows, count, pooling, channels, out.mutable_data_ptr<scalar_t>());
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
    spread(source.const_data_ptr<scalar_t>(), roi_rows, count, pooling, batch, channels, pointers);
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
