// RoIAlign on CPU, forward and backward.
//
// What is summed says roi_align_plan.h. In channels-last maps a cell is one contiguous run over channels,
// which is what the inner loops go along. Of maps [C, H, W], cells are copied to such runs when an RoI first
// asks for them, by one function with the same sums, so that both layouts give the same bits. Cells beside
// the RoI's are never multiplied, not even with zero: they may be infinite. Half and bfloat16 maps are
// widened as they are read and rounded as they are written.
//
// Bound by memory. 1000 RoIs of the pyramid of 800x1344 pixels, 256 channels, float32, float32 sums: 48 MB of
// cells under RoIs are read, 50 MB of result are written, and, as a large tensor's memory is new, cleared by
// the system before: 148 MB, 18 ms at the 8 GB/s that one thread of the machine below reads with. The caches
// deliver 334,000 cells, 342 MB, for 166 million multiply-adds of numbers: 21 million of vectors of 8, 5 ms
// or more. Measured there (AVX2, two busy cores, processor time of one thread, medians of 7): 52 and 61 ms,
// torchvision 1164 and 1272; clearing takes some 9 of them in pages of 2 MB, and took 38 in pages of 4 KB.
// Most of the rest is waiting for cells: blocks of 128 channels instead of 32 took a third less, since the
// pieces of a cell that lie together are longer; asking for the next row ahead gained nothing more. 100 RoIs
// in planes, 19 and 22 ms (torchvision 102 and 113): 22 MB of cells lie on 33 MB of cache lines; asking for
// the next row's gained 30 %.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "large_pages.h"
#include "parallel.h"
#include "roi_align_plan.h"
#include "types.h"
#include "vectorize.h"

namespace frcnn {
namespace {

// ---- inner loops ------------------------------------------------------------------------------------------

// Channels that are pooled together: as many as the sums of 49 bins fill a cache of 32 KB with. In planes,
// each channel's cells are far from the others', and copied ones shall stay in a cache.
constexpr int64_t kChannels = 128, kPlanes = 64;
constexpr int64_t kTile = 16;  // cells of a row that are copied together: a cache line of float32

// How far apart the numbers of an array [C, y, x] or [y, x, C] are.
struct Steps {
  int64_t channel, row, cell;
};
inline Steps steps_of(bool channels_last, int64_t channels, int64_t height, int64_t width) {
  return channels_last ? Steps{1, width * channels, channels} : Steps{height * width, width, 1};
}
inline int64_t tiles_in(int64_t width) { return (width + kTile - 1) / kTile; }

// Memory of one thread, for blocks of channels.
template <typename In>
struct Memory {
  std::vector<Compute<In>> sums, line;  // [h, w, channels] of an RoI; [w, channels] of a row of cells
  // For maps [C, H, W]: the sums, rounded; cells as [H, tiles, kTile, channels], and which tiles hold them.
  // Tiles that no RoI asks for are never written, so the system gives no memory for them.
  std::vector<In> rounded;
  std::unique_ptr<In[]> tiles;
  std::vector<uint8_t> copied;  // [H, tiles]
};

// What one RoI takes of a block of channels.
template <typename In>
struct Block {
  const Roi<Compute<In>>& roi;
  int64_t channels, height, width;  // of the result
  const In* map;
  Steps in;
  int64_t map_width;
  In* out;
  Steps to;
  Memory<In>& memory;
};

// out += weight * in
template <typename T>
FRCNN_INLINE void add_scaled(T* __restrict__ out, const T* __restrict__ in, T weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += weight * in[i];
}

// out = the sum of weight * cell over `kTaps` taps, after what is there already if kMore. So few taps at a
// time that sums stay in registers, whatever their width.
template <int kTaps, bool kMore, typename In, typename T>
FRCNN_INLINE void sum_taps(const In* cells, int64_t step, const Tap<T>* taps, int64_t channels,
                           T* __restrict__ out) {
  const In* in[kTaps];
  T weights[kTaps];
  for (int i = 0; i < kTaps; ++i) in[i] = cells + taps[i].cell * step, weights[i] = taps[i].weight;
  for (int64_t c = 0; c < channels; ++c) {
    T sum = weights[0] * widen(in[0][c]);
    if (kMore) sum += out[c];
    for (int i = 1; i < kTaps; ++i) sum += weights[i] * widen(in[i][c]);
    out[c] = sum;
  }
}

template <bool kMore, typename In, typename T>
FRCNN_INLINE void sum_up_to_four(const In* cells, int64_t step, const Tap<T>* taps, int64_t count,
                                 int64_t channels, T* out) {
  if (count == 1) return sum_taps<1, kMore>(cells, step, taps, channels, out);
  if (count == 2) return sum_taps<2, kMore>(cells, step, taps, channels, out);
  if (count == 3) return sum_taps<3, kMore>(cells, step, taps, channels, out);
  sum_taps<4, kMore>(cells, step, taps, channels, out);
}

// Sums a row of cells, `step` apart, into a line of bins, which is added to the rows of bins of its taps.
template <typename In, typename T>
FRCNN_INLINE void add_row(const In* cells, int64_t step, const Tap<T>* row, const Tap<T>* rows_end,
                          int64_t channels, const Block<In>& block) {
  const int64_t bin_row = block.width * channels;
  T *const line = block.memory.line.data(), *const sums = block.memory.sums.data();
  const Tap<T>* const end = block.roi.columns.data() + block.roi.columns.size();
  const Tap<T>* last = block.roi.columns.data();
  for (int64_t bin = 0; bin < block.width; ++bin) {
    const Tap<T>* first = last;
    while (last < end && last->bin == bin) ++last;
    T* const out = line + bin * channels;
    if (first == last) {
      std::fill_n(out, channels, T(0));
      continue;
    }
    sum_up_to_four<false>(cells, step, first, last - first, channels, out);
    for (first += 4; first < last; first += 4)
      sum_up_to_four<true>(cells, step, first, last - first, channels, out);
  }
  for (; row < rows_end; ++row) add_scaled(sums + row->bin * bin_row, line, row->weight, bin_row);
}

// A row of a map [C, H, W] as [W, channels], where the RoI has columns. What an earlier RoI asked for is
// there.
template <typename In>
FRCNN_INLINE const In* copied_row(const Block<In>& block, int64_t row, int64_t channels) {
  const int64_t first_tile = row * tiles_in(block.map_width);
  In* const copy = block.memory.tiles.get() + first_tile * kTile * channels;
  // The processor does not see by itself that the next row comes next, since planes lie between.
  const int64_t ahead = row < block.roi.rows.back().cell ? block.in.row : 0;
  for (const int tile : block.roi.tiles) {
    uint8_t& copied = block.memory.copied[first_tile + tile];
    if (copied) continue;
    copied = 1;
    const int64_t left = tile * kTile, count = std::min(kTile, block.map_width - left);
    const In* plane = block.map + row * block.in.row + left;
    for (int64_t c = 0; c < channels; ++c, plane += block.in.channel) {
      FRCNN_PREFETCH(plane + ahead);
      In* const to = copy + left * channels + c;
      if (count == kTile) {  // a loop of constant length
        for (int64_t i = 0; i < kTile; ++i) to[i * channels] = plane[i];
      } else {
        for (int64_t i = 0; i < count; ++i) to[i * channels] = plane[i];
      }
    }
  }
  return copy;
}

template <typename In>
FRCNN_INLINE void pool_channels(const Block<In>& block, int64_t channels) {
  using T = Compute<In>;
  T* const sums = block.memory.sums.data();
  const int64_t bins = block.height * block.width;
  std::fill_n(sums, bins * channels, T(0));
  const Tap<T>* const end = block.roi.rows.data() + block.roi.rows.size();
  for (const Tap<T>* row = block.roi.rows.data(); row < end;) {
    const Tap<T>* const first = row;
    while (row < end && row->cell == first->cell) ++row;
    if (block.in.channel == 1) {
      add_row(block.map + first->cell * block.in.row, block.in.cell, first, row, channels, block);
    } else {
      add_row(copied_row(block, first->cell, channels), channels, first, row, channels, block);
    }
  }
  if (block.to.channel == 1) {
    for (int64_t bin = 0; bin < bins; ++bin) {
      In* const out = block.out + bin * block.to.cell;
      for (int64_t c = 0; c < channels; ++c) out[c] = narrow<In>(sums[bin * channels + c]);
    }
    return;
  }
  In* const rounded = block.memory.rounded.data();
  for (int64_t i = 0; i < bins * channels; ++i) rounded[i] = narrow<In>(sums[i]);
  for (int64_t c = 0; c < channels; ++c) {
    In* const out = block.out + c * block.to.channel;
    for (int64_t bin = 0; bin < bins; ++bin) out[bin] = rounded[bin * channels + c];
  }
}

template <typename In>
FRCNN_INLINE void pool_block(const Block<In>& block) {
  block.channels == kChannels ? pool_channels(block, kChannels) : pool_channels(block, block.channels);
}

// The taps of cell rows from `row` on.
template <typename T>
FRCNN_INLINE auto first_tap(const Roi<T>& roi, int64_t row) {
  return std::lower_bound(roi.rows.begin(), roi.rows.end(), row,
                          [](const Tap<T>& tap, int64_t row) { return tap.cell < row; });
}

// The transpose of pooling: grad [h, w, C] is added to the cell rows [begin, end) of map [H, W, C].
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

FRCNN_VECTORIZED void pool_roi(const Block<float>& block) { pool_block(block); }
FRCNN_VECTORIZED void pool_roi(const Block<double>& block) { pool_block(block); }
FRCNN_VECTORIZED void pool_roi(const Block<Half>& block) { pool_block(block); }
FRCNN_VECTORIZED void pool_roi(const Block<BFloat16>& block) { pool_block(block); }
FRCNN_VECTORIZED void spread_roi(const float* grad, int64_t row_size, const Roi<float>& roi, int bins,
                                 int64_t channels, int64_t begin, int64_t end, float* scratch, float* map) {
  spread_rows(grad, row_size, roi, bins, channels, begin, end, scratch, map);
}
FRCNN_VECTORIZED void spread_roi(const double* grad, int64_t row_size, const Roi<double>& roi, int bins,
                                 int64_t channels, int64_t begin, int64_t end, double* scratch, double* map) {
  spread_rows(grad, row_size, roi, bins, channels, begin, end, scratch, map);
}

// ---- work over threads ------------------------------------------------------------------------------------

// The tiles of a row that hold the columns.
template <typename T>
std::vector<int> tiles_of(const std::vector<Tap<T>>& columns) {
  std::vector<int> tiles;
  for (const Tap<T>& column : columns) {
    const int tile = static_cast<int>(column.cell / kTile);
    if (tiles.empty() || tiles.back() != tile) tiles.push_back(tile);
  }
  return tiles;
}

// maps: one [B, H, W, C] or [B, C, H, W] per level -> out [K, h, w, C] or [K, C, h, w], overwritten.
// A task takes a block of channels for RoIs of one map, which follow each other down the map.
template <typename In>
void pool(const void* const* maps, Plan<Compute<In>>& plan, In* out) {
  struct Chunk {
    int64_t map, begin, end;  // of rois_of_map[map]
  };
  const FrcnnRoiAlign& pooling = plan.pooling;
  const bool last = pooling.channels_last;
  const int64_t channels = pooling.channels, block = std::min(channels, last ? kChannels : kPlanes);
  const int64_t blocks = block > 0 ? (channels + block - 1) / block : 0;
  const int64_t height = pooling.pooled_height, width = pooling.pooled_width;
  const int64_t pooled_size = plan.pooled_size();
  for (int64_t k = 0; k < pooling.rois; ++k) {
    if (plan.rois[k].rows.empty()) std::fill_n(out + k * pooled_size, pooled_size, In{});
    if (!last) plan.rois[k].tiles = tiles_of(plan.rois[k].columns);
  }
  std::vector<Chunk> chunks;
  const int64_t target = pooling.rois * blocks / (4 * thread_count()) + 1;
  int64_t most_tiles = 0;
  for (size_t map = 0; map < plan.rois_of_map.size(); ++map) {
    auto& own = plan.rois_of_map[map];
    std::stable_sort(own.begin(), own.end(), [&](int64_t a, int64_t b) {
      return plan.rois[a].rows.front().cell < plan.rois[b].rows.front().cell;
    });
    const int64_t count = static_cast<int64_t>(own.size());
    for (int64_t i = 0; i < count; i += target) {
      chunks.push_back({static_cast<int64_t>(map), i, std::min(i + target, count)});
    }
    if (count > 0) most_tiles = std::max(most_tiles, plan.height(map) * tiles_in(plan.width(map)));
  }
  const auto make_memory = [&] {
    Memory<In> memory;
    memory.sums.resize(height * width * block);
    memory.line.resize(width * block);
    if (!last) {
      memory.rounded.resize(height * width * block);
      memory.tiles.reset(new In[most_tiles * kTile * block]);
    }
    return memory;
  };
  parallel_tasks(static_cast<int64_t>(chunks.size()) * blocks, make_memory, [&](int64_t i, auto& memory) {
    const auto [map, begin, end] = chunks[i / blocks];
    const int64_t channel = i % blocks * block, count = std::min(block, channels - channel);
    const Steps in = steps_of(last, channels, plan.height(map), plan.width(map));
    const Steps to = steps_of(last, channels, height, width);
    const In* const cells = static_cast<const In*>(maps[plan.level(map)]) + plan.offset(map);
    if (!last) memory.copied.assign(plan.height(map) * tiles_in(plan.width(map)), 0);
    for (int64_t j = begin; j < end; ++j) {
      const int64_t k = plan.rois_of_map[map][j];
      In* const pooled = out + k * pooled_size + channel * to.channel;
      pool_roi(Block<In>{plan.rois[k], count, height, width, cells + channel * in.channel, in,
                         plan.width(map), pooled, to, memory});
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
  for_any_type(type, [&](auto number) {
    using In = decltype(number);
    Plan<Compute<In>> plan(*pooling, static_cast<const Compute<In>*>(rois));
    want_large_pages(out, pooling->rois * plan.pooled_size() * static_cast<int64_t>(sizeof(In)));
    pool(features, plan, static_cast<In*>(out));
  });
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
