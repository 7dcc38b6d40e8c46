#include "winograd.h"

namespace frcnn {
namespace {

constexpr auto kChannelsLast = MemoryFormat::ChannelsLast;

Tensor winograd_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& add, bool relu) {
  const char* op = "winograd_conv";
  const int64_t lanes = winograd_lanes();
  FRCNN_CHECK(lanes, op, kWinogradNeeds);
  expect_shape({op, "x", x}, {-1, -1, -1, -1}, "[B, C, H, W]");
  expect_shape({op, "weight", weight}, {-1, kFrcnnWinogradPoints, -1, kFrcnnWinogradPanel},
               "[K / 16, 36, C, 16]");
  expect_dtype({op, "x", x}, {ScalarType::Float}, "float32");
  expect_like({op, "weight", weight}, {op, "x", x});
  const int64_t channels = x.size(1),
                filters = weight.size(0) * kFrcnnWinogradPanel;  // no overflow: a size is 31 bits
  FRCNN_CHECK(channels == weight.size(2), op, ": x has ", channels, " channels but weight is for ",
              weight.size(2));
  FRCNN_CHECK(channels % int{kFrcnnWinogradChannels} == 0, op, ": x has ", channels,
              " channels, expected a multiple of ", int{kFrcnnWinogradChannels});
  FRCNN_CHECK(filters % int{kFrcnnWinogradFilters} == 0, op, ": weight has ", filters,
              " filters, expected a multiple of ", int{kFrcnnWinogradFilters});
  if (bias) {
    expect_shape({op, "bias", *bias}, {filters}, "[K]");
    expect_like({op, "bias", *bias}, {op, "x", x});
  }
  if (add) {
    expect_shape({op, "add", *add}, {x.size(0), filters, x.size(2), x.size(3)}, "[B, K, H, W]");
    expect_like({op, "add", *add}, {op, "x", x});
  }
  expect_elements(op, "the result", {x.size(0), filters, x.size(2), x.size(3)});
  Tensor out = empty({x.size(0), filters, x.size(2), x.size(3)}, x, kChannelsLast);
  const Tensor image = contiguous(x, kChannelsLast), panels = contiguous(weight);
  const OptionalTensor shift = contiguous_or_none(bias);
  const OptionalTensor added = contiguous_or_none(add, kChannelsLast);
  frcnn_cpu_winograd_conv(lanes, image.const_data_ptr<float>(), panels.const_data_ptr<float>(),
                          pointer_or_null<float>(shift), pointer_or_null<float>(added), relu, x.size(0),
                          x.size(2), x.size(3), channels, filters, out.mutable_data_ptr<float>());
  return out;
}

Tensor winograd_weight_gradient(const Tensor& x, const Tensor& grad) {
  const char* op = "winograd_weight_gradient";
  const int64_t lanes = winograd_lanes();
  FRCNN_CHECK(lanes, op, kWinogradNeeds);
  expect_shape({op, "x", x}, {-1, -1, -1, -1}, "[B, C, H, W]");
  expect_dtype({op, "x", x}, {ScalarType::Float}, "float32");
  expect_shape({op, "grad", grad}, {x.size(0), -1, x.size(2), x.size(3)}, "[B, K, H, W]");
  expect_like({op, "grad", grad}, {op, "x", x});
  const int64_t channels = x.size(1), filters = grad.size(1);
  FRCNN_CHECK(channels % int{kFrcnnWinogradChannels} == 0, op, ": x has ", channels,
              " channels, expected a multiple of ", int{kFrcnnWinogradChannels});
  FRCNN_CHECK(filters % int{kFrcnnWinogradFilters} == 0, op, ": grad has ", filters,
              " channels, expected a multiple of ", int{kFrcnnWinogradFilters});
  expect_elements(op, "the result", {3, 3, channels, filters});
  Tensor out = empty({3, 3, channels, filters}, x);
  const Tensor image = contiguous(x, kChannelsLast), gradient = contiguous(grad, kChannelsLast);
  frcnn_cpu_winograd_weight_gradient(lanes, image.const_data_ptr<float>(), gradient.const_data_ptr<float>(),
                                     x.size(0), x.size(2), x.size(3), channels, filters,
                                     out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

// 3x3, stride 1, padding 1: x [B, C, H, W], weight [K / 16, 36, C, 16] (transformed), bias [K],
// add [B, K, H, W] -> [B, K, H, W] channels-last; CPU only, inference only
FRCNN_DEFINE("winograd_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? add, bool relu) -> Tensor")
FRCNN_IMPLEMENT(winograd_conv, "winograd_conv", CPU)

// of the same convolution's weight: x [B, C, H, W], grad [B, K, H, W] -> [3, 3, C, K]
FRCNN_DEFINE("winograd_weight_gradient(Tensor x, Tensor grad) -> Tensor")
FRCNN_IMPLEMENT(winograd_weight_gradient, "winograd_weight_gradient", CPU)

}  // namespace frcnn
