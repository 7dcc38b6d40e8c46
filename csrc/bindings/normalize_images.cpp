#include "binding.h"

namespace frcnn {
namespace {

at::Tensor normalize_images(const at::Tensor& images, const at::Tensor& sizes, at::ArrayRef<double> mean,
                            at::ArrayRef<double> std, bool rgb, at::ScalarType dtype) {
  const char* op = "normalize_images";
  const Argument pixels{op, "images", images}, size{op, "sizes", sizes};
  expect_shape(pixels, {-1, -1, -1, 3}, "[B, H, W, 3]");
  expect_dtype(pixels, {at::kByte}, "uint8");
  expect_shape(size, {images.size(0), 2}, "[B, 2], (height, width) of each image");
  expect_dtype(size, {at::kFloat}, "float32");
  expect_same_device(size, pixels);
  expect_normalization(mean, std);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, op, ": dtype is ", dtype,
              ", expected float32, float16 or bfloat16");
  const c10::DeviceGuard guard(images.device());
  const at::Tensor rows = images.contiguous(), limits = sizes.contiguous();
  at::Tensor out = at::empty({images.size(0), 3, images.size(1), images.size(2)},
                             images.options().dtype(dtype).memory_format(at::MemoryFormat::ChannelsLast));
  FRCNN_RUN(normalize_images, images.device(), type_of(out), rows.const_data_ptr<uint8_t>(),
            limits.const_data_ptr<float>(), mean.data(), std.data(), rgb, images.size(0), images.size(1),
            images.size(2), out.mutable_data_ptr());
  return out;
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // images uint8 [B, H, W, 3], BGR; sizes float32 [B, 2], beyond which the result is zero; mean and std three
  // numbers, in the result's order, which rgb reverses -> [B, 3, H, W] of dtype, channels-last
  define(m,
         "normalize_images(Tensor images, Tensor sizes, float[] mean, float[] std, bool rgb, "
         "ScalarType dtype) -> Tensor",
         &normalize_images);
}

}  // namespace
}  // namespace frcnn
