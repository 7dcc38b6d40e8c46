// RoIAlign on CPU, forward and backward.
//
// What is read is in roi_align_plan.h. In channels-last maps, here, a cell is one contiguous run over
// channels, which is what the inner loops vectorize over; NCHW maps are read by roi_align_planar.h. Half and
// bfloat16 maps are widened as they are read.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "roi_align_plan.h"
#include "roi_align_planar.h"
#include "types.h"
#include "vectorize.h"

namespace frcnn {
namespace {

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

// Asks for a large result in pages of 2 MB, where the system has them: getting and clearing small ones takes
// longer than pooling does.
inline void want_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (first + kPage - 1) / kPage * kPage;
  const uintptr_t end = (first + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// ---- work over threads ------------------------------------------------------------------------------------

// maps: one [B, H, W, C] of In per level -> out [K, h, w, C], overwritten.
// A task takes RoIs of one map that begin near each other and goes down the map with all of them.
template <typename In, typename T>
void pool(const void* const* maps, Plan<T>& plan, T* out) {
  struct Chunk {
    int64_t map, begin, end;  // of rois_of_map[map]
  };
  const int64_t pooled_size = plan.pooled_size();
  const int64_t target = plan.pooling.rois / (4 * thread_count()) + 1;
  for (int64_t k = 0; k < plan.pooling.rois; ++k) {
    if (plan.rois[k].rows.empty()) std::fill_n(out + k * pooled_size, pooled_size, T(0));
  }
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
        T* const sums = out + own[j] * pooled_size;
        if (roi.rows.front().cell >= row) std::fill_n(sums, pooled_size, T(0));  // the first that is added
        pool_roi(map, plan.row_size(chunk.map), roi, plan.bins(), plan.pooling.channels, row, row + band,
                 scratch.data(), sums);
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
    using In = decltype(map_number);
    Plan<T> plan(*pooling, static_cast<const T*>(rois));
    want_huge_pages(out, pooling->rois * plan.pooled_size() * static_cast<int64_t>(sizeof(T)));
    pooling->channels_last ? pool<In>(features, plan, static_cast<T*>(out))
                           : pool_planar<In>(features, plan, static_cast<T*>(out));
  };
  if (type == kFrcnnDouble) return run(double{}, double{});
  for_half_or_float(type, [&](auto map_number) { run(map_number, float{}); });
}

int64_t frcnn_cpu_roi_align_backward_workspace(const FrcnnRoiAlign*) { return 0; }

void frcnn_cpu_roi_align_backward(int64_t type, const FrcnnRoiAlign* pooling, const void* grad,
                                  const void* rois, void*, void* const* grad_features) {
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    const Plan<T> plan(*pooling, static_cast<const T*>(rois));
    spread(static_cast<const T*>(grad), plan, grad_features);
  });
}
