#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/TensorOptions.h>

#include "anchors.h"

namespace frcnn {
namespace {

at::Tensor grid_anchors(at::IntArrayRef sizes, at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                        at::ArrayRef<double> ratios, double center_offset, at::Device device) {
  expect_grid("grid_anchors", sizes, strides, scales, ratios, center_offset);
  const c10::DeviceGuard guard(device);
  const AnchorArrays arrays("grid_anchors", device, strides, scales, ratios, center_offset);
  int64_t count = 0;
  for (size_t level = 0; level < strides.size(); ++level) count += sizes[2 * level] * sizes[2 * level + 1];
  count *= arrays.grid.num_scales * arrays.grid.num_ratios;
  at::Tensor anchors = at::empty({count, 4}, at::TensorOptions().dtype(at::kFloat).device(device));
  FRCNN_RUN(grid_anchors, device, &arrays.grid, sizes.data(), anchors.mutable_data_ptr<float>());
  return anchors;
}

// No tensor argument says which device's kernel to call, so the device argument does.
at::Tensor select_by_device(at::IntArrayRef sizes, at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                            at::ArrayRef<double> ratios, double center_offset, at::Device device) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("frcnn_ops::grid_anchors", "")
                             .typed<decltype(select_by_device)>();
  const auto key = c10::computeDispatchKey(std::nullopt, std::nullopt, device);
  return op.redispatch(c10::DispatchKeySet(key), sizes, strides, scales, ratios, center_offset, device);
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // sizes: H0, W0, H1, W1, ...; strides: one per level -> [sum H*W*A, 4], position-major, levels in order
  define(m,
         "grid_anchors(int[] sizes, float[] strides, float[] scales, float[] ratios, float center_offset, "
         "Device device) -> Tensor",
         &grid_anchors);
  m.impl("grid_anchors", torch::dispatch(c10::DispatchKey::BackendSelect, &select_by_device));
}

}  // namespace
}  // namespace frcnn
