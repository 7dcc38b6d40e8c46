#include "binding.h"

namespace frcnn {
namespace {

Tensor resize_images(const Tensors& images, Ints sizes, int64_t height, int64_t width) {
  const char* op = "resize_images";
  const Argument first{op, "the first of images", images[0]};  // torch finds no kernel for none
  expect_resize(sizes, static_cast<int64_t>(images.size()), height, width);
  const OnDevice guard(images[0].device());
  Tensors rows;
  std::vector<FrcnnImage> listed;
  for (size_t i = 0; i < images.size(); ++i) {
    const Argument image{op, "images", images[i]};
    expect_shape(image, {-1, -1, 3}, "[h, w, 3] for each image");
    expect_dtype(image, {ScalarType::Byte}, "uint8");
    expect_same_device(image, first);
    const int64_t own_height = images[i].size(0), own_width = images[i].size(1);
    FRCNN_CHECK(own_height <= kFrcnnLongestSide && own_width <= kFrcnnLongestSide, op, ": images[", i,
                "] has shape ", images[i].sizes(), ", expected sides of at most ", int{kFrcnnLongestSide});
    FRCNN_CHECK(images[i].numel() > 0 || sizes[2 * i] * sizes[2 * i + 1] == 0, op, ": images[", i,
                "] has shape ", images[i].sizes(), ", of which nothing can be made");
    rows.push_back(contiguous(images[i]));
    listed.push_back(
        {rows.back().const_data_ptr<uint8_t>(), own_height, own_width, sizes[2 * i], sizes[2 * i + 1]});
  }
  const int64_t batch = static_cast<int64_t>(images.size());
  expect_elements(op, "the result", {batch, height, width, 3});
  expect_at_most(op, "pixels (height times width)", images[0].device(), product({height, width}), INT32_MAX,
                 "lower height or width");
  Tensor out = empty({batch, height, width, 3}, images[0]);
  FRCNN_RUN(resize_images, images[0].device(), listed.data(), batch, height, width,
            out.mutable_data_ptr<uint8_t>());
  return out;
}

}  // namespace

// images uint8 [h, w, 3], each with a height and width of sizes, that it gets -> uint8 [B, height, width, 3],
// zero beyond
FRCNN_OPERATOR(resize_images, "resize_images(Tensor[] images, int[] sizes, int height, int width) -> Tensor")

}  // namespace frcnn
