#include "anchors.h"

namespace frcnn {
namespace {

Tensor grid_anchors(Ints sizes, Floats strides, Floats scales, Floats ratios, double center_offset,
                    Device device) {
  expect_grid("grid_anchors", sizes, strides, scales, ratios, center_offset);
  const bool shape_only = device.type() == torch::stable::DeviceType::Meta;
  FRCNN_CHECK(device.is_cpu() || device.is_cuda() || shape_only, "grid_anchors: device is ", device,
              ", expected cpu, cuda or meta");
  const OnDevice guard(device);
  const AnchorArrays arrays("grid_anchors", device, strides, scales, ratios, center_offset);
  int64_t count = 0;
  for (size_t level = 0; level < strides.size(); ++level) count += sizes[2 * level] * sizes[2 * level + 1];
  count *= arrays.grid.num_scales * arrays.grid.num_ratios;
  Tensor anchors = empty({count, 4}, ScalarType::Float, device);
  if (shape_only) return anchors;
  FRCNN_RUN(grid_anchors, device, &arrays.grid, sizes.data(), anchors.mutable_data_ptr<float>());
  return anchors;
}

}  // namespace

// sizes: H0, W0, H1, W1, ...; strides: one per level -> [sum H*W*A, 4], position-major, levels in order
FRCNN_OPERATOR(
    grid_anchors,
    "grid_anchors(int[] sizes, float[] strides, float[] scales, float[] ratios, float center_offset, "
    "Device device) -> Tensor")
// No tensor argument says which device's kernel to call; the function reads the device argument.
FRCNN_IMPLEMENT(grid_anchors, "grid_anchors", BackendSelect)

}  // namespace frcnn
