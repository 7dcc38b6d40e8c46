#include "anchors.h"

namespace frcnn {
namespace {

// Other operators are not called for sparse tensors at all.
bool is_dense(const Tensor& tensor) {
  int32_t layout = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  return layout == aoti_torch_layout_strided();
}

Tensor grid_anchors(Ints sizes, Floats strides, Floats scales, Floats ratios, double center_offset,
                    Device device, const OptionalTensor& image_sizes) {
  const char* op = "grid_anchors";
  expect_grid(op, sizes, strides, scales, ratios, center_offset);
  const bool shape_only = device.type() == torch::stable::DeviceType::Meta;
  FRCNN_CHECK(device.is_cpu() || device.is_cuda() || shape_only, op, ": device is ", device,
              ", expected cpu, cuda or meta");
  const OnDevice guard(device);
  const AnchorArrays arrays(op, device, strides, scales, ratios, center_offset);
  int64_t count = 0;
  for (size_t level = 0; level < strides.size(); ++level) count += sizes[2 * level] * sizes[2 * level + 1];
  count *= arrays.grid.num_scales * arrays.grid.num_ratios;
  std::vector<int64_t> shape{count, 4};
  if (image_sizes) {
    const Argument size{op, "image_sizes", *image_sizes};
    FRCNN_CHECK(is_dense(*image_sizes), op, ": image_sizes is a sparse tensor, expected a dense one");
    expect_shape(size, {-1, 2}, "[B, 2], (height, width) of each image");
    expect_dtype(size, {ScalarType::Float}, "float32");
    const Device there = image_sizes->device();
    FRCNN_CHECK(device.has_index() ? there == device : there.type() == device.type(), op,
                ": image_sizes is on ", image_sizes->device(), ", expected ", device,
                ", where the anchors are made");
    shape.insert(shape.begin(), image_sizes->size(0));
    expect_elements(op, "the result", {image_sizes->size(0), count, 4});
    expect_images(op, device, image_sizes->size(0));
  }
  Tensor anchors = empty(shape, ScalarType::Float, device);
  if (shape_only || anchors.numel() == 0) return anchors;  // no image has no pointer either
  const OptionalTensor images = contiguous_or_none(image_sizes);
  FRCNN_RUN(grid_anchors, device, &arrays.grid, sizes.data(), pointer_or_null<float>(images),
            images ? images->size(0) : 1, anchors.mutable_data_ptr<float>());
  return anchors;
}

}  // namespace

// sizes: H0, W0, H1, W1, ...; strides: one per level -> [sum H*W*A, 4], position-major, levels in order;
// image_sizes [B, 2] (h, w): [B, sum H*W*A, 4], NaN where a position is beyond its image
FRCNN_OPERATOR(
    grid_anchors,
    "grid_anchors(int[] sizes, float[] strides, float[] scales, float[] ratios, float center_offset, "
    "Device device, Tensor? image_sizes) -> Tensor")
// No tensor argument says which device's kernel to call; the function reads the device argument.
FRCNN_IMPLEMENT(grid_anchors, "grid_anchors", BackendSelect)

}  // namespace frcnn
