// From the selected anchors' deltas to clipped boxes, for every image and level in one launch. No anchor is
// ever stored or read: a thread computes the one its index names.
//
// Bound by latency: 5 levels x 1000 selected x 8 images are 40,000 boxes; each reads an index (8 bytes) and
// four scattered deltas (a 32-byte sector each in NCHW, two together in channels-last), and writes 17 bytes:
// 6 MB, a modeled 2 us at 3.35 TB/s, the time of a launch. What it saves is the stored anchors (4.3 MB read)
// and the op chain of gathers, decode, clip and compares (about 15 launches per level).
// Nothing was measured on a GPU.
#include "anchors.h"
#include "dtypes.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256;

struct Levels {
  FrcnnProposalLevel level[kFrcnnMostLevels];
  int64_t first[kFrcnnMostLevels];  // row of the level's first box in an image's boxes
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    decode_proposals_kernel(const __grid_constant__ AnchorGrid grid, const __grid_constant__ Levels levels,
                            const float* __restrict__ image_sizes, int64_t batch, Delta<float> stds,
                            float min_size, int64_t rows, float4* __restrict__ boxes,
                            bool* __restrict__ valid) {
  const int l = static_cast<int>(blockIdx.y);
  const FrcnnProposalLevel& level = levels.level[l];
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= level.count * batch) return;
  const int64_t image = i / level.count, rank = i - image * level.count;
  const int64_t out = image * rows + levels.first[l] + rank;

  const int per_cell = grid.num_scales * grid.num_ratios;
  const int64_t index = level.indices[i];
  if (index < 0 || index >= level.height * level.width * per_cell) {
    // Reading would be out of bounds, and an error needs a synchronization.
    boxes[out] = make_float4(0, 0, 0, 0);
    valid[out] = false;
    return;
  }
  const int64_t cell = index / per_cell, y = cell / level.width, x = cell - y * level.width;
  const T* d = static_cast<const T*>(level.deltas) + image * level.batch_stride +
               (index - cell * per_cell) * 4 * level.channel_stride + y * level.row_stride +
               x * level.column_stride;
  const Delta<float> delta{widen(d[0]), widen(d[level.channel_stride]), widen(d[2 * level.channel_stride]),
                           widen(d[3 * level.channel_stride])};
  const Box<float> own = anchor(grid, l, static_cast<unsigned>(index), static_cast<unsigned>(level.width));
  const Box<float> box = clip(decode(own, delta, stds), image_sizes[image * 2], image_sizes[image * 2 + 1]);
  boxes[out] = make_float4(box.x1, box.y1, box.x2, box.y2);
  valid[out] = box.width() > min_size && box.height() > min_size;
}

}  // namespace
}  // namespace frcnn

extern "C" int frcnn_cuda_decode_proposals(int64_t type, const FrcnnAnchors* grid,
                                           const FrcnnProposalLevel* levels, const float* image_sizes,
                                           int64_t batch, const double* stds, double min_size, float* boxes,
                                           bool* valid, cudaStream_t stream) {
  using namespace frcnn;
  AnchorGrid device_grid;
  if (!copy_grid(*grid, &device_grid)) return cudaErrorInvalidValue;
  Levels device_levels{};
  int64_t rows = 0, largest = 0;
  for (int64_t l = 0; l < grid->levels; ++l) {
    if (levels[l].height * levels[l].width * grid->num_scales * grid->num_ratios > INT32_MAX)
      return cudaErrorInvalidValue;
    device_levels.level[l] = levels[l];
    device_levels.first[l] = rows;
    rows += levels[l].count;
    largest = levels[l].count > largest ? levels[l].count : largest;
  }
  if (rows * batch == 0) return cudaSuccess;
  const Delta<float> device_stds{static_cast<float>(stds[0]), static_cast<float>(stds[1]),
                                 static_cast<float>(stds[2]), static_cast<float>(stds[3])};
  dim3 blocks;
  if (!blocks_for(largest * batch, kThreads, &blocks)) return cudaErrorInvalidValue;
  blocks.y = static_cast<unsigned>(grid->levels);
  return for_half_or_float(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return launch(decode_proposals_kernel<T>, blocks, dim3(kThreads), 0, stream, device_grid, device_levels,
                  image_sizes, batch, device_stds, static_cast<float>(min_size), rows,
                  reinterpret_cast<float4*>(boxes), valid);
  });
}
