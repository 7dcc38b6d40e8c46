// RoIAlign over a whole pyramid in one launch; the level is computed in the kernel.
//
// Bilinear weights factorize (../bilinear.h), so a bin's sum over samples is a sum over the distinct cells
// they touch, each with a row weight times a column weight. A block serves one RoI: some threads first make
// each bin row's and column's list of (cell, weight) in shared memory, once; then
// - channels-last: a warp takes a row of bins, a lane 16 bytes of channels (256 half channels per warp), so
//   that every load is a full line. It goes from bin to bin and sums each column of cells with the row
//   weights once: neighboring bins share a column or two, and those sums are still in registers;
// - NCHW: a thread takes a (channel, bin), bins fastest, so a warp's loads fall on few lines of one map.
//
// Bound by the issue of instructions: 24 for each load of 16 bytes, of which 8 are multiply-adds and 8 unpack
// halves, and what a column's sum costs beside. 1000 RoIs of one image in half read 187 MB through L2, which
// is modeled to take 21 us (docs/performance.md). Nothing was measured on a GPU.
#include "roi_align.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
// Cells that a list holds, enough for a bin of 16; odd, so that neighboring bins' lists start in other
// banks.
constexpr int kMostTaps = 17;
constexpr int kTableBytes = 40 << 10;
constexpr int kOverflow = -1;  // instead of a list's length
constexpr int64_t kBlocksWanted = 2048, kRoiBlocksWanted = 512;
// Said aloud because ptxas would otherwise spill a few registers to fit one block more.
template <typename T>
constexpr int kBlocksPerSm = sizeof(T) == 8 ? 2 : 3;

template <typename T>
struct Maps {
  const T* map[kFrcnnMostLevels];
};

template <typename C>
struct Tap {
  int cell;
  C weight;
};

// The cells of one bin along one axis with their summed weights; their number, or kOverflow.
template <typename C>
__device__ int list_taps(const RoiAxis<C>& axis, int bin, int extent, C factor, Tap<C>* taps, int capacity) {
  int begin, end, count = 0;
  sample_range(axis, bin, extent, &begin, &end);
  for (int i = begin; i < end; ++i) {
    AxisSample<C> sample;
    if (!sample_axis(axis.coordinate(bin, i), extent, &sample)) continue;
    for (int side = 0; side < 2; ++side) {
      const int cell = side == 0 ? sample.low : sample.high;
      const C weight = (side == 0 ? sample.low_weight : sample.high_weight) * factor;
      if (weight == C(0)) continue;
      // Samples move on by a cell or two at most between taps, so an equal cell is among the last two.
      if (count > 0 && taps[count - 1].cell == cell) {
        taps[count - 1].weight += weight;
      } else if (count > 1 && taps[count - 2].cell == cell) {
        taps[count - 2].weight += weight;
      } else if (count < capacity) {
        taps[count++] = {cell, weight};
      } else {
        return kOverflow;
      }
    }
  }
  return count;
}

// An RoI's place, in shared memory so that it costs no registers where it is not needed.
template <typename C>
struct Geometry {
  RoiPlace<C> place;
  int height, width;
  bool pools;
  C factor;  // 1 / samples per bin
};

// The lists of every bin row, then of every bin column, in dynamic shared memory.
template <typename C>
struct TapTable {
  Tap<C>* taps;
  int* counts;
  int capacity, rows;

  __device__ __forceinline__ TapTable(unsigned char* memory, int rows, int columns, int capacity)
      : taps(reinterpret_cast<Tap<C>*>(memory)),
        counts(reinterpret_cast<int*>(taps + (rows + columns) * capacity)),
        capacity(capacity),
        rows(rows) {}
};

// Called by a whole block.
template <typename C>
__device__ __forceinline__ void make_geometry(const Pyramid<C>& pyramid, const C* roi, Geometry<C>& g,
                                              const TapTable<C>& table) {
  if (threadIdx.x == 0) {
    g.pools = place_roi(pyramid, roi, &g.place);
    g.height = pyramid.height[g.place.level];
    g.width = pyramid.width[g.place.level];
    g.factor = g.pools ? C(1) / sample_count(g.place.y, g.place.x) : C(0);
  }
  __syncthreads();
  if (!g.pools) return;
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < table.rows + pyramid.pooled_width; i += threads) {
    const bool row = i < table.rows;
    table.counts[i] =
        list_taps(row ? g.place.y : g.place.x, row ? i : i - table.rows, row ? g.height : g.width,
                  row ? g.factor : C(1), table.taps + i * table.capacity, table.capacity);
  }
  __syncthreads();
}

// Calls add(offset in cells, weight) for every corner of every sample of bin (row, column): for bins of more
// than 16 cells along an axis, whose lists have overflowed.
template <typename C, typename F>
__device__ __forceinline__ void for_each_sample(const Geometry<C>& g, int row, int column, F&& add) {
  int y_begin, y_end, x_begin, x_end;
  sample_range(g.place.y, row, g.height, &y_begin, &y_end);
  sample_range(g.place.x, column, g.width, &x_begin, &x_end);
  for (int i = y_begin; i < y_end; ++i) {
    AxisSample<C> y;
    if (!sample_axis(g.place.y.coordinate(row, i), g.height, &y)) continue;
    for (int j = x_begin; j < x_end; ++j) {
      AxisSample<C> x;
      if (!sample_axis(g.place.x.coordinate(column, j), g.width, &x)) continue;
#pragma unroll 1
      for (int corner = 0; corner < 4; ++corner) {
        const C weight = (corner < 2 ? y.low_weight : y.high_weight) *
                         (corner % 2 == 0 ? x.low_weight : x.high_weight) * g.factor;
        const int64_t cell =
            int64_t{corner < 2 ? y.low : y.high} * g.width + (corner % 2 == 0 ? x.low : x.high);
        if (weight != C(0)) add(cell, weight);
      }
    }
  }
}

// Calls add(offset in cells, weight) for every cell that bin (row, column) touches.
template <typename C, typename F>
__device__ __forceinline__ void for_each_cell(const Geometry<C>& g, const TapTable<C>& table, int row,
                                              int column, F&& add) {
  const int rows = table.counts[row], columns = table.counts[table.rows + column];
  if (rows != kOverflow && columns != kOverflow) {
    const Tap<C>* const x = table.taps + (table.rows + column) * table.capacity;
    const int width = g.width;
    for (int i = 0; i < rows; ++i) {
      const Tap<C> y = table.taps[row * table.capacity + i];
      const int64_t base = int64_t{y.cell} * width;
#pragma unroll 4
      for (int j = 0; j < columns; ++j) add(base + x[j].cell, y.weight * x[j].weight);
    }
    return;
  }
  for_each_sample(g, row, column, add);
}

// Adds 16 bytes of a cell, times a weight.
template <int N, typename T, typename C>
__device__ __forceinline__ void add_cell(const char* from, C weight, C* sum) {
  const Pack<T, N> v = load_pack<T, N>(reinterpret_cast<const T*>(from));
#pragma unroll
  for (int n = 0; n < N; ++n) sum[n] = fma(weight, static_cast<C>(widen(v.v[n])), sum[n]);
}

// grid: RoIs, groups of bin rows; a warp per bin row. N: channels per lane. Three blocks fit a multiprocessor
// where halves are loaded by 16 bytes; the others would spill on sm_100 and sm_120.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 && N > 1 ? 3 : 2)
    channels_last_kernel(const __grid_constant__ Pyramid<compute_t<T>> pyramid,
                         const __grid_constant__ Maps<T> maps, const compute_t<T>* __restrict__ rois,
                         int capacity, T* __restrict__ out) {
  using C = compute_t<T>;
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(g, Geometry<C>);
  const TapTable<C> table(memory, pyramid.pooled_height, pyramid.pooled_width, capacity);
  const int64_t k = blockIdx.x, channels = pyramid.channels;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int ph = pyramid.pooled_height, pw = pyramid.pooled_width;
  const int row = static_cast<int>(blockIdx.y * (blockDim.x / 32)) + warp;

  make_geometry(pyramid, rois + k * 5, g, table);
  if (row >= ph) return;
  const bool pools = g.pools;
  const T* map = nullptr;
  int rows = 0;
  if (pools) {
    map = maps.map[g.place.level] + g.place.image * g.height * g.width * channels;
    rows = table.counts[row];
  }
  const Tap<C>* const y = table.taps + row * capacity;
  // In bytes; the launcher has seen to it that they fit.
  const unsigned cell_size = static_cast<unsigned>(channels * sizeof(T));
  const unsigned row_size = static_cast<unsigned>(g.width) * cell_size;
  T* const to = out + (k * ph + row) * pw * channels;
  for (int64_t c = lane * N; c < channels; c += 32 * N) {
    const char* const base = reinterpret_cast<const char*>(map + c);
    // Two columns of cells, summed over the bin row, where they are, and whether the second is the older.
    C first[N] = {}, second[N] = {};
    int first_cell = -1, second_cell = -1;
    bool second_next = false;
    const auto sum_column = [&](int cell, C* into) {
      const char* const from = base + uint64_t{static_cast<unsigned>(cell)} * cell_size;
#pragma unroll
      for (int n = 0; n < N; ++n) into[n] = C(0);
      int i = 0;
      for (; i + 1 < rows; i += 2) {
        add_cell<N, T>(from + uint64_t{static_cast<unsigned>(y[i].cell)} * row_size, y[i].weight, into);
        add_cell<N, T>(from + uint64_t{static_cast<unsigned>(y[i + 1].cell)} * row_size, y[i + 1].weight,
                       into);
      }
      if (i < rows)
        add_cell<N, T>(from + uint64_t{static_cast<unsigned>(y[i].cell)} * row_size, y[i].weight, into);
    };
    for (int bin = 0; bin < pw; ++bin) {
      C sum[N] = {};
      const int columns = pools ? table.counts[ph + bin] : 0;
      if (rows != kOverflow && columns != kOverflow) {
        const Tap<C>* const x = table.taps + (ph + bin) * capacity;
        for (int j = 0; j < columns; ++j) {
          const Tap<C> tap = x[j];
          if (tap.cell != first_cell && tap.cell != second_cell) {
            if (second_next) {
              sum_column(tap.cell, second);
              second_cell = tap.cell;
            } else {
              sum_column(tap.cell, first);
              first_cell = tap.cell;
            }
            second_next = !second_next;
          }
          if (tap.cell == first_cell) {
#pragma unroll
            for (int n = 0; n < N; ++n) sum[n] = fma(tap.weight, first[n], sum[n]);
          } else {
#pragma unroll
            for (int n = 0; n < N; ++n) sum[n] = fma(tap.weight, second[n], sum[n]);
          }
        }
      } else {
        for_each_sample(g, row, bin, [&](int64_t cell, C weight) {
          add_cell<N, T>(base + cell * int64_t{cell_size}, weight, sum);
        });
      }
      Pack<T, N> result;
#pragma unroll
      for (int n = 0; n < N; ++n) result.v[n] = narrow<T>(sum[n]);
      store_pack<T, N>(to + bin * channels + c, result);
    }
  }
}

// grid: RoIs, groups of channels
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<T>)
    nchw_kernel(const __grid_constant__ Pyramid<compute_t<T>> pyramid, const __grid_constant__ Maps<T> maps,
                const compute_t<T>* __restrict__ rois, int channels_per_block, int capacity,
                T* __restrict__ out) {
  using C = compute_t<T>;
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(g, Geometry<C>);
  const TapTable<C> table(memory, pyramid.pooled_height, pyramid.pooled_width, capacity);
  const int64_t k = blockIdx.x;
  const int pw = pyramid.pooled_width, bins = pyramid.pooled_height * pw;
  const int64_t first = int64_t{blockIdx.y} * channels_per_block;
  const int64_t left = pyramid.channels - first;
  const int count = left < channels_per_block ? static_cast<int>(left) : channels_per_block;

  make_geometry(pyramid, rois + k * 5, g, table);
  const bool pools = g.pools;
  const int64_t cells = pools ? int64_t{g.height} * g.width : 0;
  const T* map = nullptr;
  if (pools) map = maps.map[g.place.level] + (g.place.image * pyramid.channels + first) * cells;
  T* const to = out + (k * pyramid.channels + first) * bins;
  for (int i = static_cast<int>(threadIdx.x); i < count * bins; i += kThreads) {
    const int channel = i / bins, bin = i - channel * bins;
    C sum = C(0);
    if (pools) {
      for_each_cell(g, table, bin / pw, bin % pw, [&](int64_t cell, C weight) {
        sum = fma(weight, static_cast<C>(widen(map[channel * cells + cell])), sum);
      });
    }
    to[i] = narrow<T>(sum);
  }
}

int64_t clamp_to(int64_t v, int64_t low, int64_t high) { return v < low ? low : (v > high ? high : v); }

}  // namespace
}  // namespace frcnn

extern "C" int frcnn_cuda_roi_align(int64_t type, const FrcnnRoiAlign* pooling, const void* const* features,
                                    const void* rois, void* out, cudaStream_t stream) {
  using namespace frcnn;
  if (pooling->rois * pooling->channels == 0) return cudaSuccess;
  return for_feature_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using C = compute_t<T>;
    Pyramid<C> pyramid;
    if (!copy_pyramid(*pooling, &pyramid)) return cudaErrorInvalidValue;
    Maps<T> maps{};
    bool packs = pooling->channels % kPack<T> == 0 && aligned_to_16(out);
    for (int64_t l = 0; l < pooling->levels; ++l) {
      const int64_t row_size =
          pooling->sizes[2 * l + 1] * pooling->channels * static_cast<int64_t>(sizeof(T));
      if (pooling->channels_last && row_size > UINT32_MAX) return cudaErrorInvalidValue;
      maps.map[l] = static_cast<const T*>(features[l]);
      packs = packs && aligned_to_16(features[l]);
    }
    const int64_t k = pooling->rois, ph = pooling->pooled_height, axes = ph + pooling->pooled_width;
    const int64_t room =
        (kTableBytes / axes - static_cast<int64_t>(sizeof(int))) / static_cast<int64_t>(sizeof(Tap<C>));
    const int capacity = static_cast<int>(clamp_to(room, 0, kMostTaps));
    const size_t bytes = static_cast<size_t>(axes) * (capacity * sizeof(Tap<C>) + sizeof(int));
    const C* const boxes = static_cast<const C*>(rois);
    T* const to = static_cast<T*>(out);
    if (pooling->channels_last) {
      // As many rows in a block as there are RoIs to spare, and about the same number in each.
      const int64_t most = clamp_to(k * ph / kRoiBlocksWanted, 1, kWarps), groups = div_up(ph, most);
      const dim3 grid(static_cast<unsigned>(k), static_cast<unsigned>(groups));
      const dim3 block(static_cast<unsigned>(div_up(ph, groups) * 32));
      if (packs)
        return launch(channels_last_kernel<T, kPack<T>>, grid, block, bytes, stream, pyramid, maps, boxes,
                      capacity, to);
      return launch(channels_last_kernel<T, 1>, grid, block, bytes, stream, pyramid, maps, boxes, capacity,
                    to);
    }
    const int64_t most = div_up<int64_t>(pooling->channels, 65535);
    const int channels = static_cast<int>(
        clamp_to(k * pooling->channels / kBlocksWanted, most > 8 ? most : 8, 64 > most ? 64 : most));
    const dim3 grid(static_cast<unsigned>(k),
                    static_cast<unsigned>(div_up<int64_t>(pooling->channels, channels)));
    return launch(nchw_kernel<T>, grid, dim3(kThreads), bytes, stream, pyramid, maps, boxes, channels,
                  capacity, to);
  });
}
