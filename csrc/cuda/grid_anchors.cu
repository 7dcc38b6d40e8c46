// Anchors of every level in one launch; a thread makes one anchor and stores it as 16 bytes.
//
// Bound by bytes written: 16 per anchor. R-50-FPN at 800 x 1344: 268,569 anchors, 4.3 MB, nothing read; the
// floor is a modeled 1.3 us at 3.35 TB/s, below the time of a launch. Base anchors are recomputed by each
// thread (one square root and one division): that hides behind the stores and needs no second launch and no
// table.
// Nothing was measured on a GPU.
#include "../box.h"
#include "anchors.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256;

struct Sizes {
  int64_t first[kFrcnnMostLevels];  // index of the level's first anchor
  unsigned count[kFrcnnMostLevels], width[kFrcnnMostLevels];
};

__global__ void __launch_bounds__(kThreads)
    grid_anchors_kernel(const __grid_constant__ AnchorGrid grid, const __grid_constant__ Sizes sizes,
                        const float* __restrict__ image_sizes, int64_t anchors_of_image,
                        float4* __restrict__ anchors) {
  const int level = static_cast<int>(blockIdx.y);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= sizes.count[level]) return;
  Box<float> box = anchor(grid, level, i, sizes.width[level]);
  if (image_sizes != nullptr) {
    const unsigned cell = i / (grid.num_scales * grid.num_ratios), y = cell / sizes.width[level];
    const float stride = grid.strides[level];
    const bool inside =
        static_cast<float>(y) * stride < image_sizes[2 * blockIdx.z] &&
        static_cast<float>(cell - y * sizes.width[level]) * stride < image_sizes[2 * blockIdx.z + 1];
    if (!inside) box = {NAN, NAN, NAN, NAN};
  }
  anchors[blockIdx.z * anchors_of_image + sizes.first[level] + i] =
      make_float4(box.x1, box.y1, box.x2, box.y2);
}

}  // namespace
}  // namespace frcnn

extern "C" int frcnn_cuda_grid_anchors(const FrcnnAnchors* grid, const int64_t* sizes,
                                       const float* image_sizes, int64_t images, float* anchors,
                                       cudaStream_t stream) {
  using namespace frcnn;
  AnchorGrid device_grid;
  if (!copy_grid(*grid, &device_grid)) return cudaErrorInvalidValue;
  Sizes device_sizes{};
  int64_t total = 0, largest = 0;
  for (int64_t l = 0; l < grid->levels; ++l) {
    const int64_t count = sizes[2 * l] * sizes[2 * l + 1] * grid->num_scales * grid->num_ratios;
    if (count > INT32_MAX) return cudaErrorInvalidValue;
    device_sizes.first[l] = total;
    device_sizes.count[l] = static_cast<unsigned>(count);
    device_sizes.width[l] = static_cast<unsigned>(sizes[2 * l + 1]);
    total += count;
    largest = count > largest ? count : largest;
  }
  if (image_sizes == nullptr) images = 1;
  if (total == 0 || images == 0) return cudaSuccess;
  if (images > 65535) return cudaErrorInvalidValue;
  const dim3 blocks(static_cast<unsigned>(div_up<int64_t>(largest, kThreads)),
                    static_cast<unsigned>(grid->levels), static_cast<unsigned>(images));
  return launch(grid_anchors_kernel, blocks, dim3(kThreads), 0, stream, device_grid, device_sizes,
                image_sizes, total, reinterpret_cast<float4*>(anchors));
}
