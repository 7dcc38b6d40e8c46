#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/TensorOptions.h>

#include "anchors.h"

namespace frcnn {
namespace {

at::Tensor grid_anchors(at::IntArrayRef sizes, at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                        at::ArrayRef<double> ratios, double center_offset, at::Device device,
                        const std::optional<at::Tensor>& image_sizes) {
  expect_grid("grid_anchors", sizes, strides, scales, ratios, center_offset);
  const c10::DeviceGuard guard(device);
  const AnchorArrays arrays("grid_anchors", device, strides, scales, ratios, center_offset);
  int64_t count = 0;
  for (size_t level = 0; level < strides.size(); ++level) count += sizes[2 * level] * sizes[2 * level + 1];
  count *= arrays.grid.num_scales * arrays.grid.num_ratios;
  std::vector<int64_t> shape{count, 4};
  if (image_sizes.has_value()) {
    const Argument size{"grid_anchors", "image_sizes", *image_sizes};
    expect_shape(size, {-1, 2}, "[B, 2], (height, width) of each image");
    expect_dtype(size, {at::kFloat}, "float32");
    TORCH_CHECK(image_sizes->device() == device, "grid_anchors: image_sizes is on ", image_sizes->device(),
                ", expected ", device, ", where the anchors are made");
    shape.insert(shape.begin(), image_sizes->size(0));
    expect_elements("grid_anchors", "the result", {image_sizes->size(0), count, 4});
    expect_at_most("grid_anchors", "images", device, image_sizes->size(0), 65535);
  }
  const at::Tensor images = contiguous_or_none(image_sizes);
  at::Tensor anchors = at::empty(shape, at::TensorOptions().dtype(at::kFloat).device(device));
  FRCNN_RUN(grid_anchors, device, &arrays.grid, sizes.data(), pointer_or_null<float>(images),
            images.defined() ? images.size(0) : 1, anchors.mutable_data_ptr<float>());
  return anchors;
}

// No tensor argument says which device's kernel to call, so the device argument does.
at::Tensor select_by_device(at::IntArrayRef sizes, at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                            at::ArrayRef<double> ratios, double center_offset, at::Device device,
                            const std::optional<at::Tensor>& image_sizes) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("frcnn_ops::grid_anchors", "")
                             .typed<decltype(select_by_device)>();
  const auto key = c10::computeDispatchKey(std::nullopt, std::nullopt, device);
  return op.redispatch(c10::DispatchKeySet(key), sizes, strides, scales, ratios, center_offset, device,
                       image_sizes);
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // sizes: H0, W0, H1, W1, ...; strides: one per level -> [sum H*W*A, 4], position-major, levels in order;
  // image_sizes [B, 2] (h, w): [B, sum H*W*A, 4], NaN where a position is beyond its image
  define(m,
         "grid_anchors(int[] sizes, float[] strides, float[] scales, float[] ratios, float center_offset, "
         "Device device, Tensor? image_sizes) -> Tensor",
         &grid_anchors);
  m.impl("grid_anchors", torch::dispatch(c10::DispatchKey::BackendSelect, &select_by_device));
}

}  // namespace
}  // namespace frcnn
