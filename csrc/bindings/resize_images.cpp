#include "binding.h"

namespace frcnn {
namespace {

at::Tensor resize_images(at::TensorList images, at::IntArrayRef sizes, int64_t height, int64_t width) {
  const char* op = "resize_images";
  const Argument first{op, "the first of images", images[0]};  // torch finds no kernel for none
  expect_resize(sizes, static_cast<int64_t>(images.size()), height, width);
  const c10::DeviceGuard guard(images[0].device());
  std::vector<at::Tensor> rows;
  std::vector<FrcnnImage> listed;
  for (size_t i = 0; i < images.size(); ++i) {
    const Argument image{op, "images", images[i]};
    expect_shape(image, {-1, -1, 3}, "[h, w, 3] for each image");
    expect_dtype(image, {at::kByte}, "uint8");
    expect_same_device(image, first);
    const int64_t own_height = images[i].size(0), own_width = images[i].size(1);
    TORCH_CHECK(own_height <= kFrcnnLongestSide && own_width <= kFrcnnLongestSide, op, ": images[", i,
                "] has shape ", images[i].sizes(), ", expected sides of at most ", int{kFrcnnLongestSide});
    TORCH_CHECK(images[i].numel() > 0 || sizes[2 * i] * sizes[2 * i + 1] == 0, op, ": images[", i,
                "] has shape ", images[i].sizes(), ", of which nothing can be made");
    rows.push_back(images[i].contiguous());
    listed.push_back(
        {rows.back().const_data_ptr<uint8_t>(), own_height, own_width, sizes[2 * i], sizes[2 * i + 1]});
  }
  const int64_t batch = static_cast<int64_t>(images.size());
  expect_elements(op, "the result", {batch, height, width, 3});
  at::Tensor out = at::empty({batch, height, width, 3}, images[0].options());
  FRCNN_RUN(resize_images, images[0].device(), listed.data(), batch, height, width,
            out.mutable_data_ptr<uint8_t>());
  return out;
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // images uint8 [h, w, 3], each with a height and width of sizes, that it gets -> uint8 [B, height, width,
  // 3], zero beyond
  define(m, "resize_images(Tensor[] images, int[] sizes, int height, int width) -> Tensor", &resize_images);
}

}  // namespace
}  // namespace frcnn
