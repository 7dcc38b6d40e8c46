#include "binding.h"

namespace frcnn {
namespace {

constexpr auto kChannelsLast = MemoryFormat::ChannelsLast;

void expect_maps(const char* op, const Tensor& grad, const Tensor& out) {
  const Argument gradient{op, "grad", grad}, result{op, "out", out};
  expect_shape(gradient, {-1, -1, -1, -1}, "[B, K, H, W]");
  expect_dtype(gradient, {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16},
               "float32, float64, float16 or bfloat16");
  FRCNN_CHECK(out.sizes().equals(grad.sizes()), op, ": out has shape ", out.sizes(), ", expected ",
              grad.sizes(), ", as grad");
  expect_like(result, gradient);
  expect_at_most(op, "cells of grad", grad.device(), product({grad.size(0), grad.size(2), grad.size(3)}),
                 INT32_MAX - 1024, "give it fewer images");
}

// Into `masked`, whose memory may be that of grad.
Tensor run(const Tensor& grad, const Tensor& out, void* masked) {
  const OnDevice guard(grad.device());
  const Tensor gradients = contiguous(grad, kChannelsLast), results = contiguous(out, kChannelsLast);
  const int64_t channels = grad.size(1), cells = grad.size(0) * grad.size(2) * grad.size(3);
  Tensor by_bias = empty({channels}, grad);
  Tensor memory =
      workspace(FRCNN_WORKSPACE_OF(relu_bias_gradient, grad.device(), type_of(grad), cells, channels), grad);
  FRCNN_RUN(relu_bias_gradient, grad.device(), type_of(grad), gradients.const_data_ptr(),
            results.const_data_ptr(), cells, channels, memory.mutable_data_ptr(), masked,
            by_bias.mutable_data_ptr());
  return by_bias;
}

std::tuple<Tensor, Tensor> relu_bias_gradient(const Tensor& grad, const Tensor& out) {
  expect_maps("relu_bias_gradient", grad, out);
  Tensor masked = empty(grad.sizes(), grad, kChannelsLast);
  return {masked, run(grad, out, masked.mutable_data_ptr())};
}

Tensor relu_bias_gradient_(Tensor grad, const Tensor& out) {
  const char* op = "relu_bias_gradient_";
  expect_maps(op, grad, out);
  FRCNN_CHECK(is_channels_last(grad), op, ": grad, which is overwritten, is not channels-last");
  return run(grad, out, grad.mutable_data_ptr());
}

}  // namespace

// grad and out [B, K, H, W] of any floating type -> gradient of what the ReLU was given [B, K, H, W],
// channels-last, and its sum over images and cells [K]
FRCNN_OPERATOR(relu_bias_gradient, "relu_bias_gradient(Tensor grad, Tensor out) -> (Tensor, Tensor)")
// The former overwrites grad, which is channels-last; the latter comes back.
FRCNN_OPERATOR(relu_bias_gradient_, "relu_bias_gradient_(Tensor(a!) grad, Tensor out) -> Tensor")

}  // namespace frcnn
