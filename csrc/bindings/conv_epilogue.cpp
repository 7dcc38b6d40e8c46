#include "binding.h"

namespace frcnn {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

at::Tensor conv_epilogue(const at::Tensor& x, const at::Tensor& bias, const std::optional<at::Tensor>& add,
                         bool relu) {
  const char* op = "conv_epilogue";
  const Argument map{op, "x", x}, shift{op, "bias", bias};
  expect_shape(map, {-1, -1, -1, -1}, "[B, K, H, W]");
  expect_dtype(map, {at::kFloat, at::kHalf, at::kBFloat16}, "float32, float16 or bfloat16");
  expect_shape(shift, {x.size(1)}, "[K]");
  expect_like(shift, map);
  if (add) {
    const Argument other{op, "add", *add};
    expect_shape(other, {x.size(0), x.size(1), -1, -1}, "[B, K, h, w]");
    expect_like(other, map);
    TORCH_CHECK(add->numel() > 0 || x.numel() == 0, op, ": add has shape ", add->sizes(),
                ", which has no cell for those of x, ", x.sizes());
  }
  const c10::DeviceGuard guard(x.device());
  const at::Tensor cells = x.contiguous(kChannelsLast), shifts = bias.contiguous();
  const at::Tensor others = add ? add->contiguous(kChannelsLast) : at::Tensor();
  at::Tensor out = at::empty(x.sizes(), x.options().memory_format(kChannelsLast));
  const FrcnnEpilogue epilogue{cells.const_data_ptr(),
                               shifts.const_data_ptr(),
                               pointer_or_null(others),
                               relu,
                               x.size(0),
                               x.size(2),
                               x.size(3),
                               x.size(1),
                               add ? others.size(2) : 0,
                               add ? others.size(3) : 0};
  FRCNN_RUN(conv_epilogue, x.device(), type_of(x), &epilogue, out.mutable_data_ptr());
  return out;
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // x [B, K, H, W]; bias [K]; add [B, K, h, w] or none, whose nearest cell is added -> [B, K, H, W],
  // channels- last
  define(m, "conv_epilogue(Tensor x, Tensor bias, Tensor? add, bool relu) -> Tensor", &conv_epilogue);
}

}  // namespace
}  // namespace frcnn
