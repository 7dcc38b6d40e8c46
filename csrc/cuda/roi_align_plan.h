// Which RoIs reach which tile of the gradient's maps, and how the work of all tiles is cut into parts.
//
// Launch 1 (sort_kernel): RoIs by map (level, image), keeping their order, with the cells each may touch.
// Launch 2 (plan_kernel): a warp sums the work of the RoIs that reach a tile; the block that ends last sums
// that of all tiles.
#pragma once

#include "block_sum.h"
#include "last_block.h"
#include "roi_align.h"

namespace frcnn {
namespace {

constexpr int kTile = kFrcnnTile;  // cells along each side; a warp per row
constexpr int kThreads = kTile * 32;
constexpr int kSortThreads = 1024;
// Parts that the work is cut into at most, a block each: two for each multiprocessor of a large GPU.
constexpr int kMostParts = 264;
// Work is counted in units of about 8 instructions of a warp. That of a tile is to list its RoIs and to write
// it; that of an RoI at most kMostRoiWork, so that those of a block's threads fit into 20 bits.
constexpr int kWriteWork = 100, kListWork = 200, kMostRoiWork = 4095;

// Which cells an RoI may touch, inclusive.
struct Bounds {
  int y_low, y_high, x_low, x_high;
};

// What these launches leave, in the workspace.
struct Sorted {
  Bounds* bounds;      // [K], sorted
  int64_t* before;     // [tiles + 1]: the work of the tiles before one
  int* order;          // [K]: which RoI
  int* starts;         // [maps + 1]
  int* tile_of_part;   // [parts]: the tile that a part begins in
  unsigned* finished;  // [1]
  int parts;

  // Where part `part` begins.
  __device__ __forceinline__ int64_t begin_of(int part, int64_t tiles) const {
    return before[tiles] / parts * part + before[tiles] % parts * part / parts;
  }
};

// The tiles of all maps in a row, as a kernel parameter.
struct Tiles {
  int64_t first[kFrcnnMostLevels];  // of the level
  int columns[kFrcnnMostLevels];    // tiles along x
  int per_image[kFrcnnMostLevels];
  int64_t count;
};

struct TilePlace {
  int level, y, x;  // of the first cell
  int64_t image;
};

__device__ __forceinline__ TilePlace place_tile(const Tiles& tiles, int levels, int64_t tile) {
  TilePlace place;
  place.level = 0;
  while (place.level + 1 < levels && tile >= tiles.first[place.level + 1]) ++place.level;
  const int64_t of_level = tile - tiles.first[place.level];
  place.image = of_level / tiles.per_image[place.level];
  const int of_image = static_cast<int>(of_level - place.image * tiles.per_image[place.level]);
  place.y = of_image / tiles.columns[place.level] * kTile;
  place.x = of_image % tiles.columns[place.level] * kTile;
  return place;
}

__device__ __forceinline__ bool reaches(const Bounds& b, const TilePlace& tile) {
  return b.y_low < tile.y + kTile && b.y_high >= tile.y && b.x_low < tile.x + kTile && b.x_high >= tile.x;
}

// What a tile costs however many of its map's RoIs reach it.
__device__ __forceinline__ int64_t tile_work(int rois) {
  return kWriteWork + int64_t{kListWork} * ((rois + kThreads - 1) / kThreads);
}

struct Overlap {
  int cells, bins,
      each;  // cells of a tile that an RoI may touch, about how many bins touch those, cells of a bin
};

__device__ __forceinline__ Overlap overlap_of(int low, int high, int first, int bins) {
  const int extent = high - low + 1, begin = low > first ? low : first;
  const int end = high < first + kTile - 1 ? high : first + kTile - 1;
  Overlap o;
  o.cells = end - begin + 1;
  o.bins = min_of(bins, o.cells * bins / extent + 1);
  o.each = min_of(o.cells, extent / bins + 1);
  return o;
}

// About what an RoI costs a tile that it reaches: its weights, then for each bin column the gradients of all
// bin rows, read once for each row of cells that they touch, and the sums of each row of cells.
__device__ __forceinline__ int roi_work(const Bounds& b, const TilePlace& tile, int bin_rows,
                                        int bin_columns) {
  const Overlap y = overlap_of(b.y_low, b.y_high, tile.y, bin_rows),
                x = overlap_of(b.x_low, b.x_high, tile.x, bin_columns);
  return min_of(35 + x.bins * (3 * y.bins * y.each + y.cells * (x.each + 2)), kMostRoiWork);
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

// grid: maps. Each block finds where its map starts by counting the RoIs of lower maps. One block at a time
// on a multiprocessor: for two the compiler would take 32 registers a thread, and spill.
template <typename C>
__global__ void __launch_bounds__(kSortThreads, 1)
    sort_kernel(const __grid_constant__ Pyramid<C> pyramid, const C* __restrict__ rois, Sorted sorted) {
  FRCNN_SHARED(of_warp, int[kSortThreads / 32]);
  FRCNN_SHARED(lower, int);
  const int64_t map = blockIdx.x;
  const int count = static_cast<int>(pyramid.rois), t = static_cast<int>(threadIdx.x);
  if (t == 0) lower = 0;
  if (t == 0 && map == 0) *sorted.finished = 0;
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

// grid: tiles, a warp each
template <typename C>
__global__ void __launch_bounds__(kThreads) plan_kernel(const __grid_constant__ Pyramid<C> pyramid,
                                                        const __grid_constant__ Tiles tiles, Sorted sorted) {
  FRCNN_SHARED(of_warp, int64_t[kTile]);
  FRCNN_SHARED(last, bool);
  const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32;
  const int64_t own = int64_t{blockIdx.x} * kTile + warp;
  if (own < tiles.count) {
    const TilePlace tile = place_tile(tiles, pyramid.levels, own);
    const int64_t map = tile.level * pyramid.batch + tile.image;
    const int end = sorted.starts[map + 1];
    int64_t work = 0;
    for (int i = sorted.starts[map] + lane; i < end; i += 32) {
      const Bounds bounds = sorted.bounds[i];
      if (reaches(bounds, tile)) work += roi_work(bounds, tile, pyramid.pooled_height, pyramid.pooled_width);
    }
    for (int step = 16; step > 0; step /= 2) work += __shfl_xor_sync(kFullWarp, work, step);
    if (lane == 0) sorted.before[own + 1] = tile_work(end - sorted.starts[map]) + work;
  }
  if (!ends_last(sorted.finished, gridDim.x, last)) return;

  // A thread sums neighboring tiles.
  const int64_t each = (tiles.count + kThreads - 1) / kThreads;
  const int64_t begin = t * each < tiles.count ? t * each : tiles.count;
  const int64_t end = begin + each < tiles.count ? begin + each : tiles.count;
  int64_t sum = 0, total;
  for (int64_t i = begin; i < end; ++i) sum += sorted.before[i + 1];
  int64_t before = sum_before_in_block<kTile>(sum, of_warp, &total);
  for (int64_t i = begin; i < end; ++i) {
    before += sorted.before[i + 1];
    sorted.before[i + 1] = before;
  }
  if (t == 0) sorted.before[0] = 0;
  __syncthreads();
  for (int part = t; part < sorted.parts; part += kThreads) {
    // The last tile that begins at or before the part.
    const int64_t wanted = sorted.begin_of(part, tiles.count);
    int64_t low = 0, high = tiles.count - 1;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (sorted.before[middle] <= wanted)
        low = middle;
      else
        high = middle - 1;
    }
    sorted.tile_of_part[part] = static_cast<int>(low);
  }
}

}  // namespace
}  // namespace frcnn
