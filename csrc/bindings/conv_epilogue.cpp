#include "binding.h"

namespace frcnn {
namespace {

constexpr auto kChannelsLast = MemoryFormat::ChannelsLast;

Tensor conv_epilogue(const Tensor& x, const Tensor& bias, const OptionalTensor& add, bool relu) {
  const char* op = "conv_epilogue";
  const Argument map{op, "x", x}, shift{op, "bias", bias};
  expect_shape(map, {-1, -1, -1, -1}, "[B, K, H, W]");
  expect_dtype(map, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16},
               "float32, float16 or bfloat16");
  expect_shape(shift, {x.size(1)}, "[K]");
  expect_like(shift, map);
  if (add) {
    const Argument other{op, "add", *add};
    expect_shape(other, {x.size(0), x.size(1), -1, -1}, "[B, K, h, w]");
    expect_like(other, map);
    FRCNN_CHECK(add->numel() > 0 || x.numel() == 0, op, ": add has shape ", add->sizes(),
                ", which has no cell for those of x, ", x.sizes());
  }
  const int64_t pack = 16 / static_cast<int64_t>(x.element_size());
  expect_at_most(op, "packs of x of 16 bytes", x.device(), x.numel() / (x.size(1) % pack == 0 ? pack : 1),
                 INT32_MAX, "give it fewer images");
  const OnDevice guard(x.device());
  const Tensor cells = contiguous(x, kChannelsLast), shifts = contiguous(bias);
  const OptionalTensor others = contiguous_or_none(add, kChannelsLast);
  Tensor out = empty(x.sizes(), x, kChannelsLast);
  const FrcnnEpilogue epilogue{cells.const_data_ptr(),
                               shifts.const_data_ptr(),
                               pointer_or_null(others),
                               relu,
                               x.size(0),
                               x.size(2),
                               x.size(3),
                               x.size(1),
                               add ? add->size(2) : 0,
                               add ? add->size(3) : 0};
  FRCNN_RUN(conv_epilogue, x.device(), type_of(x), &epilogue, out.mutable_data_ptr());
  return out;
}

}  // namespace

// x [B, K, H, W]; bias [K]; add [B, K, h, w] or none, whose nearest cell is added -> [B, K, H, W], channels-
// last
FRCNN_OPERATOR(conv_epilogue, "conv_epilogue(Tensor x, Tensor bias, Tensor? add, bool relu) -> Tensor")

}  // namespace frcnn
