// Gradient of RoIAlign with respect to the feature maps: no atomics on sums, the same bits every time.
//
// The maps are cut into tiles of 8 x 8 cells x 32 lanes of channels. The work of a tile is to sum the RoIs
// that reach it, one after the other, and to write it; all tiles' work in a row is cut into as many equal
// parts as there are blocks (roi_align_plan.h, two launches), so that neither many RoIs on one object nor
// large maps without any make a block longer than the others. A block takes the tiles of its part one by one:
// it lists the tile's RoIs, in order, makes their row and column weights for the tile in shared memory, and
// each warp sums one row of 8 cells in registers, float32 for half: for each bin column the gradients of the
// bin rows that touch the row, then their sum into the cells that the column touches. A tile that lies in one
// part is written once, zeros included: no memset, no read-modify-write. The pieces of any other are left in
// float32 and added up by the last launch (join_kernel). Where the parts begin and end follows from the RoIs
// alone, and a sum's order is that of RoIs, then bin columns, then bin rows: results are deterministic.
//
// Bound by the issue of instructions: each gradient of 16 bytes is unpacked and weighted with 16, and a bin
// column's sum meets the cells that it touches with 8 multiply-adds each. A tile that is split costs its
// pieces, 64 KB of float32 each for 256 channels, twice through L2. Figures: docs/performance.md, modeled;
// nothing was measured on a GPU. Atomics would move 36 to 64 read-modify-writes of 32 bytes per 16 bytes of
// gradient.
#include "roi_align_plan.h"

namespace frcnn {
namespace {

constexpr int kMostBatch = 16;  // RoIs whose weights are in shared memory together
constexpr int kTableBytes = 40 << 10;

template <typename T>
struct GradMaps {
  T* map[kFrcnnMostLevels];
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
  int hits[kThreads];                                  // RoIs that reach the tile
  int of_warp[kTile], low, high;
};

// A piece of a tile, of a part that does not cover all of it: [2 * parts][kTile * kTile][channels], for each
// part what it has of a tile that began before, and of one that goes on behind.
template <typename C>
__device__ __forceinline__ C* piece_of(C* pieces, int part, bool begins, int cell, int64_t channels) {
  return pieces + ((int64_t{part} * 2 + begins) * kTile * kTile + cell) * channels;
}

// grid: parts, groups of 32 * N channels. N: channels per lane.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    tile_kernel(const __grid_constant__ Pyramid<compute_t<T>> pyramid, const __grid_constant__ Tiles tiles,
                const __grid_constant__ GradMaps<T> maps, const compute_t<T>* __restrict__ rois,
                const T* __restrict__ grad, Sorted sorted, int batch_size,
                compute_t<T>* __restrict__ pieces) {
  using C = compute_t<T>;
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(s, Weights<C>);
  const int t = static_cast<int>(threadIdx.x), row = t / 32, lane = t % 32;
  const int ph = pyramid.pooled_height, pw = pyramid.pooled_width, bins = ph + pw;
  C* const table = reinterpret_cast<C*>(memory);  // [batch_size][ph + pw][kTile]
  const int64_t channel = int64_t{blockIdx.y} * 32 * N + lane * N;
  const bool active = channel < pyramid.channels;
  const int part = static_cast<int>(blockIdx.x);
  const int64_t part_begin = sorted.begin_of(part, tiles.count),
                part_end = sorted.begin_of(part + 1, tiles.count);

  for (int own = sorted.tile_of_part[part]; sorted.before[own] < part_end; ++own) {
    const TilePlace tile = place_tile(tiles, pyramid.levels, own);
    const int height = pyramid.height[tile.level], width = pyramid.width[tile.level];
    const int64_t map = tile.level * pyramid.batch + tile.image;
    // Where the work of the next RoI that reaches the tile begins.
    int64_t next = sorted.before[own] + tile_work(sorted.starts[map + 1] - sorted.starts[map]);

    C sum[kTile][N] = {};
    const int end = sorted.starts[map + 1];
    for (int first = sorted.starts[map]; first < end && next < part_end; first += kThreads) {
      int work = 0, total;
      if (first + t < end) {
        const Bounds bounds = sorted.bounds[first + t];
        if (reaches(bounds, tile)) work = roi_work(bounds, tile, ph, pw);
      }
      // How many RoIs and how much work are before: in the upper and the lower bits.
      const int before = sum_before_in_block<kTile>(work > 0 ? 1 << 20 | work : 0, s.of_warp, &total);
      const int rank = before >> 20, found = total >> 20;
      const int64_t at = next + (before & 0xfffff), after = next + (total & 0xfffff);
      // The part's are the RoIs whose work begins in it, which follow each other.
      if (work > 0) {
        s.hits[rank] = sorted.order[first + t];
        if (at < part_begin && at + work >= part_begin) s.low = rank + 1;
        if (at < part_end && at + work >= part_end) s.high = rank + 1;
      }
      __syncthreads();
      const int low = next >= part_begin ? 0 : after < part_begin ? found : s.low;
      const int high = after < part_end ? found : s.high;
      next = after;

      for (int hit = low; hit < high; hit += batch_size) {
        const int size = high - hit < batch_size ? high - hit : batch_size;
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
          const int bin = along_y ? b : b - ph, cell = (along_y ? tile.y : tile.x) + offset;
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
          const Range rows = s.rows[r][row], columns = s.columns[r];
          const C* const y_weights = table + r * bins * kTile + row;
          const C* const x_weights = table + (r * bins + ph) * kTile;
          const T* const from = grad + int64_t{s.hits[hit + r]} * ph * pw * pyramid.channels + channel;
          if (rows.begin >= rows.end) continue;
          for (int j = columns.begin; j < columns.end; ++j) {
            C values[N] = {};
            for (int i = rows.begin; i < rows.end; ++i) {
              const C weight = y_weights[i * kTile];
              if (weight == C(0)) continue;  // keeps an infinite gradient away from other cells
              const Pack<T, N> v = load_pack<T, N>(from + (i * pw + j) * pyramid.channels);
#pragma unroll
              for (int n = 0; n < N; ++n) values[n] = fma(weight, static_cast<C>(widen(v.v[n])), values[n]);
            }
#pragma unroll
            for (int x = 0; x < kTile; x += kPack<C>) {
              const Pack<C, kPack<C>> weights = load_pack<C, kPack<C>>(x_weights + j * kTile + x);
              // Two cells at once: for one the compiler would rather issue all than branch.
#pragma unroll
              for (int k = 0; k < kPack<C>; k += 2) {
                if (weights.v[k] == C(0) && weights.v[k + 1] == C(0)) continue;
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                  if (weights.v[k + side] == C(0)) continue;
#pragma unroll
                  for (int n = 0; n < N; ++n)
                    sum[x + k + side][n] = fma(weights.v[k + side], values[n], sum[x + k + side][n]);
                }
              }
            }
          }
        }
        __syncthreads();
      }
    }

    const bool from_start = part_begin <= sorted.before[own], to_end = sorted.before[own + 1] <= part_end;
    const int y = tile.y + row, columns = width - tile.x < kTile ? width - tile.x : kTile;
    if (!active || y >= height) continue;
    T* const to =
        maps.map[tile.level] + ((tile.image * height + y) * width + tile.x) * pyramid.channels + channel;
#pragma unroll
    for (int x = 0; x < kTile; ++x) {
      if (x >= columns) break;
      if (from_start && to_end) {
        Pack<T, N> result;
#pragma unroll
        for (int n = 0; n < N; ++n) result.v[n] = narrow<T>(sum[x][n]);
        store_pack<T, N>(to + x * pyramid.channels, result);
      } else {
        C* const piece = piece_of(pieces, part, from_start, row * kTile + x, pyramid.channels) + channel;
        constexpr int kEach = N == 1 ? 1 : kPack<C>;
#pragma unroll
        for (int n = 0; n < N; n += kEach) {
          Pack<C, kEach> some;
#pragma unroll
          for (int m = 0; m < kEach; ++m) some.v[m] = sum[x][n + m];
          store_pack<C, kEach>(piece + n, some);
        }
      }
    }
  }
}

// Adds up the pieces of the tiles that lie in several parts, in order. grid: parts but the first, tile rows,
// groups of 32 * N channels; a warp takes a cell.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    join_kernel(const __grid_constant__ Pyramid<compute_t<T>> pyramid, const __grid_constant__ Tiles tiles,
                const __grid_constant__ GradMaps<T> maps, Sorted sorted,
                const compute_t<T>* __restrict__ pieces) {
  using C = compute_t<T>;
  constexpr int kEach = N == 1 ? 1 : kPack<C>;
  const int t = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.y), column = t / 32;
  const int64_t channel = int64_t{blockIdx.z} * 32 * N + t % 32 * N;
  int part = static_cast<int>(blockIdx.x) + 1;
  const int64_t own = sorted.tile_of_part[part], begins = sorted.before[own], ends = sorted.before[own + 1];
  // The part is the first that begins within the tile; the one before it has the tile's beginning.
  if (sorted.begin_of(part, tiles.count) <= begins || sorted.begin_of(part - 1, tiles.count) > begins) return;
  const TilePlace tile = place_tile(tiles, pyramid.levels, own);
  const int height = pyramid.height[tile.level], width = pyramid.width[tile.level];
  const int y = tile.y + row, x = tile.x + column;
  if (y >= height || x >= width || channel >= pyramid.channels) return;

  C sum[N] = {};
  const auto add = [&](int of, bool begins_tile) {
    const C* const piece =
        piece_of(pieces, of, begins_tile, row * kTile + column, pyramid.channels) + channel;
#pragma unroll
    for (int n = 0; n < N; n += kEach) {
      const Pack<C, kEach> some = load_pack<C, kEach>(piece + n);
#pragma unroll
      for (int m = 0; m < kEach; ++m) sum[n + m] += some.v[m];
    }
  };
  add(part - 1, true);
  for (int64_t at = sorted.begin_of(part, tiles.count); at < ends; ++part) {
    const int64_t next = sorted.begin_of(part + 1, tiles.count);
    if (next > at) add(part, false);  // else there is less work than parts, and this one has none
    at = next;
  }
  Pack<T, N> result;
#pragma unroll
  for (int n = 0; n < N; ++n) result.v[n] = narrow<T>(sum[n]);
  T* const to = maps.map[tile.level] + ((tile.image * height + y) * width + x) * pyramid.channels + channel;
  store_pack<T, N>(to, result);
}

int64_t round_up(int64_t bytes) { return div_up<int64_t>(bytes, 16) * 16; }

// Fewer where there is little work: a part is at least some RoIs of a tile.
int parts_of(const FrcnnRoiAlign& pooling, int64_t tiles) {
  const int64_t most = tiles + pooling.rois / 8;
  return static_cast<int>(most < kMostParts ? most : kMostParts);
}

// False if the tiles are more than 32 bits count.
bool count_tiles(const FrcnnRoiAlign& pooling, Tiles* tiles) {
  *tiles = {};
  for (int64_t l = 0; l < pooling.levels && l < kFrcnnMostLevels; ++l) {
    const int64_t columns = div_up<int64_t>(pooling.sizes[2 * l + 1], kTile);
    const int64_t per_image = div_up<int64_t>(pooling.sizes[2 * l], kTile) * columns;
    if (columns > INT32_MAX || per_image > INT32_MAX) return false;
    tiles->first[l] = tiles->count;
    tiles->columns[l] = static_cast<int>(columns);
    tiles->per_image[l] = static_cast<int>(per_image);
    tiles->count += per_image * pooling.batch;
  }
  return tiles->count <= INT32_MAX;
}

// The places of the workspace's parts.
struct Workspace {
  int64_t pieces, bounds, before, order, starts, tile_of_part, finished, end;
};
Workspace workspace_of(const FrcnnRoiAlign& pooling, int64_t tiles, int64_t size) {
  Workspace w;
  w.pieces = 0;
  w.bounds = round_up(2 * parts_of(pooling, tiles) * kTile * kTile * pooling.channels * size);
  w.before = w.bounds + pooling.rois * static_cast<int64_t>(sizeof(Bounds));
  w.order = w.before + (tiles + 1) * static_cast<int64_t>(sizeof(int64_t));
  w.starts = w.order + pooling.rois * 4;
  w.tile_of_part = w.starts + (pooling.levels * pooling.batch + 1) * 4;
  w.finished = w.tile_of_part + parts_of(pooling, tiles) * 4;
  w.end = w.finished + 4;
  return w;
}

}  // namespace
}  // namespace frcnn

extern "C" {

int64_t frcnn_cuda_roi_align_backward_workspace(int64_t type, const FrcnnRoiAlign* pooling) {
  frcnn::Tiles tiles;
  if (!frcnn::count_tiles(*pooling, &tiles)) return 0;
  return frcnn::workspace_of(*pooling, tiles.count, type == kFrcnnDouble ? 8 : 4).end;
}

int frcnn_cuda_roi_align_backward(int64_t type, const FrcnnRoiAlign* pooling, const void* grad,
                                  const void* rois, void* workspace, void* const* grad_features,
                                  cudaStream_t stream) {
  using namespace frcnn;
  return for_feature_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using C = compute_t<T>;
    Pyramid<C> pyramid;
    Tiles tiles;
    if (!copy_pyramid(*pooling, &pyramid) || !count_tiles(*pooling, &tiles)) return cudaErrorInvalidValue;
    GradMaps<T> maps{};
    bool packs = pooling->channels % kPack<T> == 0 && aligned_to_16(grad);
    for (int l = 0; l < pyramid.levels; ++l) {
      maps.map[l] = static_cast<T*>(grad_features[l]);
      packs = packs && aligned_to_16(grad_features[l]);
    }
    if (tiles.count * pooling->channels == 0) return cudaSuccess;
    const int64_t bytes_per_roi =
        (pyramid.pooled_height + pyramid.pooled_width) * kTile * static_cast<int64_t>(sizeof(C));
    const int64_t fitting = kTableBytes / bytes_per_roi;
    const int batch_size = static_cast<int>(fitting < kMostBatch ? fitting : kMostBatch);
    if (pooling->channels > kFrcnnMostChannels || batch_size == 0) return cudaErrorInvalidValue;

    const Workspace places = workspace_of(*pooling, tiles.count, sizeof(C));
    char* const memory = static_cast<char*>(workspace);
    const Sorted sorted{reinterpret_cast<Bounds*>(memory + places.bounds),
                        reinterpret_cast<int64_t*>(memory + places.before),
                        reinterpret_cast<int*>(memory + places.order),
                        reinterpret_cast<int*>(memory + places.starts),
                        reinterpret_cast<int*>(memory + places.tile_of_part),
                        reinterpret_cast<unsigned*>(memory + places.finished),
                        parts_of(*pooling, tiles.count)};
    C* const pieces = reinterpret_cast<C*>(memory + places.pieces);
    const C* const boxes = static_cast<const C*>(rois);
    cudaError_t error = launch(sort_kernel<C>, dim3(static_cast<unsigned>(pooling->levels * pooling->batch)),
                               dim3(kSortThreads), 0, stream, pyramid, boxes, sorted);
    if (error == cudaSuccess)
      error = launch(plan_kernel<C>, dim3(static_cast<unsigned>(div_up<int64_t>(tiles.count, kTile))),
                     dim3(kThreads), 0, stream, pyramid, tiles, sorted);
    const auto run = [&](auto tile, auto join, int channels_per_lane) {
      const unsigned groups =
          static_cast<unsigned>(div_up<int64_t>(pooling->channels, 32 * channels_per_lane));
      if (error == cudaSuccess)
        error = launch(tile, dim3(static_cast<unsigned>(sorted.parts), groups), dim3(kThreads),
                       static_cast<size_t>(batch_size * bytes_per_roi), stream, pyramid, tiles, maps, boxes,
                       static_cast<const T*>(grad), sorted, batch_size, pieces);
      if (error == cudaSuccess && sorted.parts > 1)
        error = launch(join, dim3(static_cast<unsigned>(sorted.parts) - 1, kTile, groups), dim3(kThreads), 0,
                       stream, pyramid, tiles, maps, sorted, pieces);
      return error;
    };
    return packs ? run(tile_kernel<T, kPack<T>>, join_kernel<T, kPack<T>>, kPack<T>)
                 : run(tile_kernel<T, 1>, join_kernel<T, 1>, 1);
  });
}
}
