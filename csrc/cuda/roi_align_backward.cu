// Gradient of RoIAlign with respect to the feature maps: no atomics, the same bits every time.
//
// Launch 1 (sort_kernel): RoIs by map (level, image), keeping their order, with the cells each may touch.
// Launch 2 (tile_kernel): the maps are cut into tiles of 8 x 8 cells x 32 lanes of channels. A block owns a
// tile: it lists its map's RoIs that reach it, in order, makes their row and column weights for the tile in
// shared memory, and each warp sums one row of 8 cells in registers, float32 for half, reading a bin's
// gradient once for all 8. Every output is written once, zeros included: no memset, no read-modify-write. The
// order of a sum is that of RoIs, then bins, whatever runs when, so results are deterministic.
//
// Bound by the issue of instructions: each gradient of 16 bytes meets 8 cells with 64 multiply-adds, for the
// about 40 % of a tile row's cells that a bin touches. For 2 x 512 RoIs in half a modeled 65 us
// (docs/performance.md), where the bytes take a modeled 35 us (92 MB of maps written once, the gradients read
// once). A tile is one block's, so many RoIs on one small object are bound by its block: a modeled 111 us
// where they lie around 7 objects. Atomics would move 36 to 64 read-modify-writes of 32 bytes per 16 bytes of
// gradient instead. Nothing was measured on a GPU.
#include "roi_align.h"

namespace frcnn {
namespace {

constexpr int kTile = kFrcnnTile;  // cells along each side; a warp per row
constexpr int kThreads = kTile * 32;
constexpr int kSortThreads = 1024;
constexpr int kMostBatch = 16;  // RoIs whose weights are in shared memory together
constexpr int kTableBytes = 40 << 10;

// Which cells an RoI may touch, inclusive.
struct Bounds {
  int y_low, y_high, x_low, x_high;
};

// What launch 1 leaves for launch 2, in the workspace.
struct Sorted {
  Bounds* bounds;  // [K], sorted
  int* order;      // [K]: which RoI
  int* starts;     // [maps + 1]
};

Sorted sorted_in(void* workspace, int64_t rois) {
  Sorted s;
  s.bounds = static_cast<Bounds*>(workspace);
  s.order = reinterpret_cast<int*>(s.bounds + rois);
  s.starts = s.order + rois;
  return s;
}

// One cell more on each side than the samples reach, so that rounding cannot lose one.
template <typename C>
__device__ __forceinline__ bool touched(const RoiAxis<C>& axis, int bins, int extent, int* low, int* high) {
  if (axis.grid <= 0) return false;
  const C a = axis.coordinate(0, 0), b = axis.coordinate(bins - 1, axis.grid - 1);
  const int first = static_cast<int>(min_of(a, b)) - 2, last = static_cast<int>(max_of(a, b)) + 2;
  *low = first > 0 ? first : 0;
  *high = last < extent - 1 ? last : extent - 1;
  return *low <= *high;
}

// The map of an RoI, or -1 if it touches nothing.
template <typename C>
__device__ __forceinline__ int64_t map_of(const Pyramid<C>& pyramid, const C* roi, Bounds* bounds) {
  RoiPlace<C> place;
  if (!place_roi(pyramid, roi, &place)) return -1;
  if (!touched(place.y, pyramid.pooled_height, pyramid.height[place.level], &bounds->y_low,
               &bounds->y_high) ||
      !touched(place.x, pyramid.pooled_width, pyramid.width[place.level], &bounds->x_low, &bounds->x_high))
    return -1;
  return place.level * pyramid.batch + place.image;
}

// The number of threads before this one for which `chosen` holds, and of all; called by a whole block.
template <int kWarps>
__device__ __forceinline__ int rank_in_block(bool chosen, int* of_warp, int* total) {
  const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32;
  const unsigned votes = __ballot_sync(kFullWarp, chosen);
  if (lane == 0) of_warp[warp] = __popc(votes);
  __syncthreads();
  int before = 0, sum = 0;
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? of_warp[w] : 0;
    sum += of_warp[w];
  }
  __syncthreads();
  *total = sum;
  return before + __popc(votes & ((1u << lane) - 1u));
}

// grid: maps. Each block finds where its map starts by counting the RoIs of lower maps.
template <typename C>
__global__ void __launch_bounds__(kSortThreads)
    sort_kernel(const __grid_constant__ Pyramid<C> pyramid, const C* __restrict__ rois, Sorted sorted) {
  FRCNN_SHARED(of_warp, int[kSortThreads / 32]);
  FRCNN_SHARED(lower, int);
  const int64_t map = blockIdx.x;
  const int count = static_cast<int>(pyramid.rois), t = static_cast<int>(threadIdx.x);
  if (t == 0) lower = 0;
  __syncthreads();
  int own_lower = 0;
  Bounds bounds;
  for (int k = t; k < count; k += kSortThreads) {
    const int64_t m = map_of(pyramid, rois + int64_t{k} * 5, &bounds);
    own_lower += m >= 0 && m < map;
  }
  if (own_lower > 0) atomicAdd(&lower, own_lower);
  __syncthreads();
  int next = lower;
  if (t == 0) sorted.starts[map] = next;
  for (int first = 0; first < count; first += kSortThreads) {
    const int k = first + t;
    const bool mine = k < count && map_of(pyramid, rois + int64_t{k} * 5, &bounds) == map;
    int found;
    const int rank = rank_in_block<kSortThreads / 32>(mine, of_warp, &found);
    if (mine) {
      sorted.order[next + rank] = k;
      sorted.bounds[next + rank] = bounds;
    }
    next += found;
  }
  if (t == 0 && map == gridDim.x - 1) sorted.starts[map + 1] = next;
}

template <typename T>
struct GradMaps {
  T* map[kFrcnnMostLevels];
  int64_t first_tile[kFrcnnMostLevels];  // of the level, among all tiles
  int columns[kFrcnnMostLevels];         // tiles along x
  int tiles[kFrcnnMostLevels];           // per image
};

// How much of a bin's sum comes from one cell, along one axis.
template <typename C>
__device__ __forceinline__ C cell_weight(const RoiAxis<C>& axis, int bin, int extent, int cell) {
  int begin, end;
  sample_range(axis, bin, extent, &begin, &end);
  if (end - begin > 8) {
    // Only samples within a cell of this one count (the border cells also take those outside the map).
    const C step = axis.bin / static_cast<C>(axis.grid);
    const C base = axis.start + static_cast<C>(bin) * axis.bin;
    if (step > C(0)) {
      const C first = (static_cast<C>(cell == 0 ? -1 : cell - 1) - base) / step - C(3);
      const C last = (static_cast<C>(cell == extent - 1 ? extent : cell + 1) - base) / step + C(3);
      if (first > static_cast<C>(begin)) begin = first < static_cast<C>(end) ? static_cast<int>(first) : end;
      if (last < static_cast<C>(end)) end = last > static_cast<C>(begin) ? static_cast<int>(last) : begin;
    }
  }
  C weight = C(0);
  for (int i = begin; i < end; ++i) {
    AxisSample<C> sample;
    if (!sample_axis(axis.coordinate(bin, i), extent, &sample)) continue;
    if (sample.low == cell) weight += sample.low_weight;
    if (sample.high == cell) weight += sample.high_weight;
  }
  return weight;
}

// A half-open range that atomics grow.
struct Range {
  int begin, end;
};

// Weights of up to kMostBatch RoIs for one tile. Dynamic shared memory holds, per RoI, the weight of every
// (bin row, tile row) and of every (bin column, tile column).
template <typename C>
struct Weights {
  RoiPlace<C> place[kMostBatch];
  C factor[kMostBatch];
  Range rows[kMostBatch][kTile], columns[kMostBatch];  // bins that touch the tile row, the tile's columns
  int hits[kThreads];                                  // places in the sorted list that reach the tile
  int of_warp[kTile];
};

// grid: tiles, groups of 32 * N channels. N: channels per lane.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    tile_kernel(const __grid_constant__ Pyramid<compute_t<T>> pyramid,
                const __grid_constant__ GradMaps<T> maps, const compute_t<T>* __restrict__ rois,
                const T* __restrict__ grad, Sorted sorted, int batch_size) {
  using C = compute_t<T>;
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(s, Weights<C>);
  const int t = static_cast<int>(threadIdx.x), row = t / 32, lane = t % 32;
  const int ph = pyramid.pooled_height, pw = pyramid.pooled_width, bins = ph + pw;
  C* const table = reinterpret_cast<C*>(memory);  // [batch_size][ph + pw][kTile]

  int level = 0;
  while (level + 1 < pyramid.levels && int64_t{blockIdx.x} >= maps.first_tile[level + 1]) ++level;
  const int64_t tile_of_level = int64_t{blockIdx.x} - maps.first_tile[level];
  const int64_t image = tile_of_level / maps.tiles[level];
  const int tile = static_cast<int>(tile_of_level - image * maps.tiles[level]);
  const int y0 = tile / maps.columns[level] * kTile, x0 = tile % maps.columns[level] * kTile;
  const int height = pyramid.height[level], width = pyramid.width[level];
  const int64_t map = level * pyramid.batch + image;
  const int64_t channel = int64_t{blockIdx.y} * 32 * N + lane * N;
  const bool active = channel < pyramid.channels;

  C sum[kTile][N] = {};
  const int begin = sorted.starts[map], end = sorted.starts[map + 1];
  for (int first = begin; first < end; first += kThreads) {
    bool reaches = false;
    if (first + t < end) {
      const Bounds b = sorted.bounds[first + t];
      reaches = b.y_low < y0 + kTile && b.y_high >= y0 && b.x_low < x0 + kTile && b.x_high >= x0;
    }
    int found;
    const int rank = rank_in_block<kTile>(reaches, s.of_warp, &found);
    if (reaches) s.hits[rank] = sorted.order[first + t];
    __syncthreads();

    for (int hit = 0; hit < found; hit += batch_size) {
      const int size = found - hit < batch_size ? found - hit : batch_size;
      if (t < size) {
        place_roi(pyramid, rois + int64_t{s.hits[hit + t]} * 5, &s.place[t]);
        s.factor[t] = C(1) / sample_count(s.place[t].y, s.place[t].x);
        s.columns[t] = {pw, 0};
      }
      if (t < size * kTile) s.rows[t / kTile][t % kTile] = {ph, 0};
      __syncthreads();
      for (int i = t; i < size * bins * kTile; i += kThreads) {
        const int r = i / (bins * kTile), b = i / kTile % bins, offset = i % kTile;
        const bool along_y = b < ph;
        const int bin = along_y ? b : b - ph, cell = (along_y ? y0 : x0) + offset;
        const int extent = along_y ? height : width;
        C weight = C(0);
        if (cell < extent) weight = cell_weight(along_y ? s.place[r].y : s.place[r].x, bin, extent, cell);
        if (along_y) weight *= s.factor[r];
        table[i] = weight;
        if (weight != C(0)) {
          Range& range = along_y ? s.rows[r][offset] : s.columns[r];
          atomicMin(&range.begin, bin);
          atomicMax(&range.end, bin + 1);
        }
      }
      __syncthreads();
      for (int r = 0; r < size && active; ++r) {
        const T* const from = grad + int64_t{s.hits[hit + r]} * ph * pw * pyramid.channels + channel;
        const C* const y_weights = table + r * bins * kTile;
        const C* const x_weights = y_weights + ph * kTile;
        const Range rows = s.rows[r][row], columns = s.columns[r];
        for (int i = rows.begin; i < rows.end; ++i) {
          const C y_weight = y_weights[i * kTile + row];
          if (y_weight == C(0)) continue;
          for (int j = columns.begin; j < columns.end; ++j) {
            const Pack<T, N> v = load_pack<T, N>(from + (i * pw + j) * pyramid.channels);
            C values[N];
#pragma unroll
            for (int n = 0; n < N; ++n) values[n] = static_cast<C>(widen(v.v[n])) * y_weight;
            C weights[kTile];
#pragma unroll
            for (int x = 0; x < kTile; x += kPack<C>) {
              const Pack<C, kPack<C>> some = load_pack<C, kPack<C>>(x_weights + j * kTile + x);
#pragma unroll
              for (int n = 0; n < kPack<C>; ++n) weights[x + n] = some.v[n];
            }
#pragma unroll
            for (int x = 0; x < kTile; ++x) {
              const C weight = weights[x];
              if (weight == C(0)) continue;  // also keeps an infinite gradient away from other cells
#pragma unroll
              for (int n = 0; n < N; ++n) sum[x][n] = fma(weight, values[n], sum[x][n]);
            }
          }
        }
      }
      __syncthreads();
    }
  }

  const int y = y0 + row;
  if (!active || y >= height) return;
  const int columns = width - x0 < kTile ? width - x0 : kTile;
  T* const to = maps.map[level] + ((image * height + y) * width + x0) * pyramid.channels + channel;
#pragma unroll
  for (int x = 0; x < kTile; ++x) {
    if (x >= columns) break;
    Pack<T, N> result;
#pragma unroll
    for (int n = 0; n < N; ++n) result.v[n] = narrow<T>(sum[x][n]);
    store_pack<T, N>(to + x * pyramid.channels, result);
  }
}

}  // namespace
}  // namespace frcnn

extern "C" {

int64_t frcnn_cuda_roi_align_backward_workspace(const FrcnnRoiAlign* pooling) {
  return pooling->rois * static_cast<int64_t>(sizeof(frcnn::Bounds) + sizeof(int)) +
         (pooling->levels * pooling->batch + 1) * static_cast<int64_t>(sizeof(int));
}

int frcnn_cuda_roi_align_backward(int64_t type, const FrcnnRoiAlign* pooling, const void* grad,
                                  const void* rois, void* workspace, void* const* grad_features,
                                  cudaStream_t stream) {
  using namespace frcnn;
  return for_feature_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using C = compute_t<T>;
    Pyramid<C> pyramid;
    if (!copy_pyramid(*pooling, &pyramid)) return cudaErrorInvalidValue;
    GradMaps<T> maps{};
    int64_t tiles = 0;
    bool packs = pooling->channels % kPack<T> == 0 && aligned_to_16(grad);
    for (int l = 0; l < pyramid.levels; ++l) {
      maps.map[l] = static_cast<T*>(grad_features[l]);
      maps.first_tile[l] = tiles;
      maps.columns[l] = div_up(pyramid.width[l], kTile);
      const int64_t per_image = int64_t{div_up(pyramid.height[l], kTile)} * maps.columns[l];
      if (per_image > INT32_MAX) return cudaErrorInvalidValue;
      maps.tiles[l] = static_cast<int>(per_image);
      tiles += per_image * pooling->batch;
      packs = packs && aligned_to_16(grad_features[l]);
    }
    if (tiles * pooling->channels == 0) return cudaSuccess;
    const int64_t bytes_per_roi =
        (pyramid.pooled_height + pyramid.pooled_width) * kTile * static_cast<int64_t>(sizeof(C));
    const int64_t fitting = kTableBytes / bytes_per_roi;
    const int batch_size = static_cast<int>(fitting < kMostBatch ? fitting : kMostBatch);
    if (tiles > INT32_MAX || pooling->channels > kFrcnnMostChannels || batch_size == 0)
      return cudaErrorInvalidValue;

    const Sorted sorted = sorted_in(workspace, pooling->rois);
    const C* const boxes = static_cast<const C*>(rois);
    const cudaError_t error =
        launch(sort_kernel<C>, dim3(static_cast<unsigned>(pooling->levels * pooling->batch)),
               dim3(kSortThreads), 0, stream, pyramid, boxes, sorted);
    if (error != cudaSuccess) return error;
    const auto run = [&](auto kernel, int channels_per_lane) {
      const dim3 grid(static_cast<unsigned>(tiles),
                      static_cast<unsigned>(div_up<int64_t>(pooling->channels, 32 * channels_per_lane)));
      return launch(kernel, grid, dim3(kThreads), static_cast<size_t>(batch_size * bytes_per_roi), stream,
                    pyramid, maps, boxes, static_cast<const T*>(grad), sorted, batch_size);
    };
    return packs ? run(tile_kernel<T, kPack<T>>, kPack<T>) : run(tile_kernel<T, 1>, 1);
  });
}
}
