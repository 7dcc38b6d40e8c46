#include <ATen/Version.h>

#include "binding.h"

namespace frcnn {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// Vectors as wide as torch's own: ATEN_CPU_CAPABILITY limits both.
int64_t lanes() {
  static const int64_t lanes = [] {
    const std::string capability = at::get_cpu_capability();
    return frcnn_cpu_winograd_lanes(capability == "DEFAULT" ? 4 : capability == "AVX2" ? 8 : 16);
  }();
  return lanes;
}

at::Tensor winograd_conv(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& add, bool relu) {
  const char* op = "winograd_conv";
  TORCH_CHECK_NOT_IMPLEMENTED(lanes(), op,
                              ": needs a CPU with AVX2 and FMA, AVX-512 or NEON, torch using it, ",
                              "and a build by gcc or clang");
  expect_shape({op, "x", x}, {-1, -1, -1, -1}, "[B, C, H, W]");
  expect_shape({op, "weight", weight}, {-1, kFrcnnWinogradPoints, -1, kFrcnnWinogradPanel},
               "[K / 16, 36, C, 16]");
  expect_dtype({op, "x", x}, {at::kFloat}, "float32");
  expect_like({op, "weight", weight}, {op, "x", x});
  const int64_t channels = x.size(1),
                filters = weight.size(0) * kFrcnnWinogradPanel;  // no overflow: a size is 31 bits
  TORCH_CHECK(channels == weight.size(2), op, ": x has ", channels, " channels but weight is for ",
              weight.size(2));
  TORCH_CHECK(channels % int{kFrcnnWinogradChannels} == 0, op, ": x has ", channels,
              " channels, expected a multiple of ", int{kFrcnnWinogradChannels});
  TORCH_CHECK(filters % int{kFrcnnWinogradFilters} == 0, op, ": weight has ", filters,
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
  at::Tensor out =
      at::empty({x.size(0), filters, x.size(2), x.size(3)}, x.options().memory_format(kChannelsLast));
  const at::Tensor image = x.contiguous(kChannelsLast), panels = weight.contiguous();
  const at::Tensor shift = contiguous_or_none(bias);
  const at::Tensor added = add ? add->contiguous(kChannelsLast) : at::Tensor();
  frcnn_cpu_winograd_conv(lanes(), image.const_data_ptr<float>(), panels.const_data_ptr<float>(),
                          pointer_or_null<float>(shift), pointer_or_null<float>(added), relu, x.size(0),
                          x.size(2), x.size(3), channels, filters, out.mutable_data_ptr<float>());
  return out;
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // 3x3, stride 1, padding 1: x [B, C, H, W], weight [K / 16, 36, C, 16] (transformed), bias [K],
  // add [B, K, H, W] -> [B, K, H, W] channels-last; CPU only, inference only
  m.def("winograd_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? add, bool relu) -> Tensor");
  m.impl("winograd_conv", torch::dispatch(c10::DispatchKey::CPU, &winograd_conv));
}

}  // namespace
}  // namespace frcnn
