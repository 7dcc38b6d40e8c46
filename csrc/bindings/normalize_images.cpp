#include "binding.h"

namespace frcnn {
namespace {

Tensor normalize_images(const Tensor& images, const Tensor& sizes, Floats mean, Floats std, bool rgb,
                        ScalarType dtype) {
  const char* op = "normalize_images";
  const Argument pixels{op, "images", images}, size{op, "sizes", sizes};
  expect_normalization(mean, std, rgb);
  const int64_t channels = static_cast<int64_t>(mean.size());
  const std::string shape = "[B, H, W, " + std::to_string(channels) + "], as many channels as mean";
  expect_shape(pixels, {-1, -1, -1, channels}, shape.c_str());
  expect_dtype(pixels, {ScalarType::Byte}, "uint8");
  expect_shape(size, {images.size(0), 2}, "[B, 2], (height, width) of each image");
  expect_dtype(size, {ScalarType::Float}, "float32");
  expect_same_device(size, pixels);
  const bool known = dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  FRCNN_CHECK(known, op, ": dtype is ", dtype, ", expected float32, float16 or bfloat16");
  expect_at_most(op, "pixels of images", images.device(),
                 product({images.size(0), images.size(1), images.size(2)}), INT32_MAX);
  const OnDevice guard(images.device());
  const Tensor rows = contiguous(images), limits = contiguous(sizes);
  Tensor out = empty({images.size(0), channels, images.size(1), images.size(2)}, dtype, images.device(),
                     MemoryFormat::ChannelsLast);
  FRCNN_RUN(normalize_images, images.device(), type_of(out), rows.const_data_ptr<uint8_t>(),
            limits.const_data_ptr<float>(), mean.data(), std.data(), rgb, images.size(0), images.size(1),
            images.size(2), channels, out.mutable_data_ptr());
  return out;
}

}  // namespace

// images uint8 [B, H, W, C], BGR if there are three channels; sizes float32 [B, 2], beyond which the result
// is zero; mean and std C numbers, in the result's order, which rgb reverses -> [B, C, H, W] of dtype,
// channels-last
FRCNN_OPERATOR(normalize_images,
               "normalize_images(Tensor images, Tensor sizes, float[] mean, float[] std, bool rgb, "
               "ScalarType dtype) -> Tensor")

}  // namespace frcnn
