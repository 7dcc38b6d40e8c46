// RoIAlign on CPU, forward and backward.
//
// A sample's bilinear weights are products of a row weight and a column weight (see bilinear.h), so the sum
// over all samples of a bin factorizes: out[bin] = sum_y rows[y] * sum_x columns[x] * feature[y, x]. Each
// axis of an RoI becomes a short list of taps (cell, bin, weight) with the samples already summed, and every
// cell of the map is read about once instead of four times per sample. Features are channels-last: a cell is
// one contiguous run over channels, which is what the inner loops vectorize over. Half and bfloat16 maps are
// widened as they are read.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../bilinear.h"
#include "parallel.h"
#include "types.h"
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
  Roi<T> plan{level, static_cast<int64_t>(roi[0]), {}, {}};
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

// ---- inner loops ------------------------------------------------------------------------------------------

template <typename T>
struct Vector {
  // 64 bytes, at any element's address.
  typedef T type __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  static constexpr int kLanes = 64 / sizeof(T);
};

// The i-th of the vectors from p on, widened to what is computed in. (By reference: gcc warns of vectors that
// are passed by value where the baseline has none so wide.)
template <typename T>
FRCNN_INLINE void load(const T* p, int i, typename Vector<T>::type& out) {
  out = reinterpret_cast<const typename Vector<T>::type*>(p)[i];
}
typedef uint32_t Words __attribute__((vector_size(64)));
FRCNN_INLINE void load_words(const void* p, int i, Words& out) {
  typedef uint16_t Shorts __attribute__((vector_size(32), aligned(2), may_alias));
  out = __builtin_convertvector(static_cast<const Shorts*>(p)[i], Words);
}
FRCNN_INLINE void load(const BFloat16* p, int i, Vector<float>::type& out) {
  Words bits;
  load_words(p, i, bits);
  bits <<= 16;
  std::memcpy(&out, &bits, sizeof(out));
}
FRCNN_INLINE void load(const Half* p, int i, Vector<float>::type& out) {  // as widen() in types.h
  Words bits;
  load_words(p, i, bits);
  const Words sign = (bits & 0x8000u) << 16;
  bits = (bits & 0x7fffu) << 13;
  std::memcpy(&out, &bits, sizeof(out));
  out *= 0x1p112f;
  std::memcpy(&bits, &out, sizeof(out));
  const auto beyond = out >= 65536.0f;  // all ones where it holds
  Words mask;
  std::memcpy(&mask, &beyond, sizeof(mask));
  bits |= (mask & 0x7f800000u) | sign;
  std::memcpy(&out, &bits, sizeof(out));
}

// out[c] = sum of weight * row[cell * channels + c] over the taps, for `kCount` vectors of channels
template <int kCount, typename In, typename T>
FRCNN_INLINE void sum_taps(const In* row, const Tap<T>* first, const Tap<T>* last, int64_t channels, T* out) {
  using V = typename Vector<T>::type;
  V sum[kCount] = {};
  for (const Tap<T>* tap = first; tap < last; ++tap) {
    const In* in = row + tap->cell * channels;
    for (int j = 0; j < kCount; ++j) {
      V cells;
      load(in, j, cells);
      sum[j] += tap->weight * cells;
    }
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
template <typename In, typename T>
FRCNN_INLINE void pool_rows(const In* map, int64_t row_size, const Roi<T>& roi, int bins, int64_t channels,
                            int64_t begin, int64_t end, T* scratch, T* out) {
  constexpr int kLanes = Vector<T>::kLanes, kBlock = 8;
  const int64_t bin_row = bins * channels;
  const Tap<T>* const columns_end = roi.columns.data() + roi.columns.size();
  for (auto tap = first_tap(roi, begin); tap != roi.rows.end() && tap->cell < end;) {
    const int64_t cell = tap->cell;
    const In* row = map + cell * row_size;
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
        for (const Tap<T>* t = first; t < last; ++t) sum += t->weight * widen(row[t->cell * channels + c]);
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
FRCNN_VECTORIZED void pool_roi(const Half* map, int64_t row_size, const Roi<float>& roi, int bins,
                               int64_t channels, int64_t begin, int64_t end, float* scratch, float* out) {
  pool_rows(map, row_size, roi, bins, channels, begin, end, scratch, out);
}
FRCNN_VECTORIZED void pool_roi(const BFloat16* map, int64_t row_size, const Roi<float>& roi, int bins,
                               int64_t channels, int64_t begin, int64_t end, float* scratch, float* out) {
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

// maps: one [B, H, W, C] of In per level -> out [K, h, w, C], zero on entry.
// A task takes RoIs of one map that begin near each other and goes down the map with all of them.
template <typename In, typename T>
void pool(const void* const* maps, Plan<T>& plan, T* out) {
  struct Chunk {
    int64_t map, begin, end;  // of rois_of_map[map]
  };
  const int64_t pooled_size = plan.pooled_size();
  const int64_t target = plan.pooling.rois / (4 * thread_count()) + 1;
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
    const In* map = static_cast<const In*>(maps[plan.level(chunk.map)]) + plan.offset(chunk.map);
    const int64_t band = plan.band(chunk.map), height = plan.height(chunk.map);
    std::vector<T> scratch(plan.bin_row());
    for (int64_t row = plan.rois[own[chunk.begin]].rows.front().cell; row < height; row += band) {
      for (int64_t j = chunk.begin; j < chunk.end; ++j) {
        const Roi<T>& roi = plan.rois[own[j]];
        if (roi.rows.front().cell >= row + band) break;
        if (roi.rows.back().cell < row) continue;
        pool_roi(map, plan.row_size(chunk.map), roi, plan.bins(), plan.pooling.channels, row, row + band,
                 scratch.data(), out + own[j] * pooled_size);
      }
    }
  });
}

// grad [K, h, w, C] -> maps: one [B, H, W, C] per level, overwritten.
// A band of map rows belongs to one task, which adds the RoIs in their order: no atomics, and the same sums
// whatever the number of threads.
template <typename T>
void spread(const T* grad, const Plan<T>& plan, void* const* maps) {
  struct Band {
    int64_t map, begin, end;  // rows [begin, end)
  };
  std::vector<Band> bands;
  for (int64_t map = 0; map < static_cast<int64_t>(plan.rois_of_map.size()); ++map) {
    const int64_t height = plan.height(map), band = plan.band(map);
    for (int64_t row = 0; row < height; row += band)
      bands.push_back({map, row, std::min(row + band, height)});
  }
  parallel_tasks(static_cast<int64_t>(bands.size()), [&](int64_t i) {
    const Band& band = bands[i];
    const int64_t row_size = plan.row_size(band.map);
    T* map = static_cast<T*>(maps[plan.level(band.map)]) + plan.offset(band.map);
    std::fill(map + band.begin * row_size, map + band.end * row_size, T(0));
    std::vector<T> scratch(plan.bin_row());
    for (const int64_t k : plan.rois_of_map[band.map]) {
      spread_roi(grad + k * plan.pooled_size(), row_size, plan.rois[k], plan.bins(), plan.pooling.channels,
                 band.begin, band.end, scratch.data(), map);
    }
  });
}

}  // namespace
}  // namespace frcnn

using namespace frcnn;

void frcnn_cpu_roi_align(int64_t type, const FrcnnRoiAlign* pooling, const void* const* features,
                         const void* rois, void* out) {
  const auto run = [&](auto map_number, auto number) {
    using T = decltype(number);
    Plan<T> plan(*pooling, static_cast<const T*>(rois));
    pool<decltype(map_number)>(features, plan, static_cast<T*>(out));
  };
  if (type == kFrcnnDouble) return run(double{}, double{});
  for_half_or_float(type, [&](auto map_number) { run(map_number, float{}); });
}

int64_t frcnn_cpu_roi_align_backward_workspace(int64_t, const FrcnnRoiAlign*) { return 0; }

void frcnn_cpu_roi_align_backward(int64_t type, const FrcnnRoiAlign* pooling, const void* grad,
                                  const void* rois, void*, void* const* grad_features) {
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    const Plan<T> plan(*pooling, static_cast<const T*>(rois));
    spread(static_cast<const T*>(grad), plan, grad_features);
  });
}
