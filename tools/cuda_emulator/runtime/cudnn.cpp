// cuDNN's operators, whose library needs a GPU: their results are allocated in the layout that torch chooses,
// and computed by the CPU's convolutions and norms.
#include <ATen/Context.h>
#include <ATen/native/ConvUtils.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "aten.h"

namespace {

using at::Tensor;
using gpu::current_stream;
using gpu::NamedOp;
using gpu::on_host;
using gpu::PlainDispatch;

Tensor in_layout(const Tensor& t, at::MemoryFormat format, const char* what) {
  if (t.is_contiguous(format)) return t;
  gpu::log("layout", what, t.nbytes());
  return t.contiguous(format);
}

// One convolution, in the arithmetic that torch would choose for float32 now.
void log_convolution(const std::string& what) {
  const bool tf32 = at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
  gpu::log("conv", tf32 ? what + ", tf32" : what);
}

template <typename F>
void later(const Tensor& on_device, F f) {
  gpu::enqueue(current_stream(on_device.device()), [f] {
    const PlainDispatch plain;
    f();
  });
}

Tensor convolve(const Tensor& self, const Tensor& weight, const std::optional<Tensor>& z,
                const std::optional<Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                at::IntArrayRef dilation, int64_t groups, bool relu, const char* name) {
  const NamedOp named(name);
  const c10::cuda::CUDAGuard guard(self.device());
  const auto format = at::native::cudnn_conv_suggest_memory_format(self, weight);
  const Tensor input = in_layout(self, format, "convolution's input"),
               filter = in_layout(weight, format, "convolution's weight");
  log_convolution(name);
  std::vector<int64_t> size =
      at::native::conv_output_size(input.sizes(), filter.sizes(), padding, stride, dilation);
  Tensor out = at::empty(size, input.options(), format);
  later(out, [=, x = on_host(input), w = on_host(filter), y = on_host(out), add = z ? on_host(*z) : Tensor(),
              b = bias && bias->defined() ? std::optional(on_host(*bias)) : bias, s = stride.vec(),
              p = padding.vec(), d = dilation.vec()] {
    Tensor sum = at::convolution(x, w, b, s, p, d, false, std::vector<int64_t>(s.size(), 0), groups);
    if (add.defined()) sum = sum + add;
    y.copy_(relu ? sum.relu() : sum);
  });
  return out;
}

Tensor cudnn_convolution(const Tensor& self, const Tensor& weight, at::IntArrayRef padding,
                         at::IntArrayRef stride, at::IntArrayRef dilation, int64_t groups, bool, bool, bool) {
  return convolve(self, weight, {}, {}, stride, padding, dilation, groups, false, "aten::cudnn_convolution");
}
Tensor cudnn_convolution_relu(const Tensor& self, const Tensor& weight, const std::optional<Tensor>& bias,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                              int64_t groups) {
  return convolve(self, weight, {}, bias, stride, padding, dilation, groups, true,
                  "aten::cudnn_convolution_relu");
}
Tensor cudnn_convolution_add_relu(const Tensor& self, const Tensor& weight, const Tensor& z,
                                  const std::optional<at::Scalar>&, const std::optional<Tensor>& bias,
                                  at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                  int64_t groups) {
  return convolve(self, weight, z, bias, stride, padding, dilation, groups, true,
                  "aten::cudnn_convolution_add_relu");
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, at::OptionalIntArrayRef bias_sizes,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  const NamedOp named("aten::convolution_backward");
  const c10::cuda::CUDAGuard guard(input.device());
  const auto format = at::native::cudnn_conv_suggest_memory_format(input, weight);
  const Tensor g = in_layout(grad_output, format, "gradient of a convolution's output"),
               x = in_layout(input, format, "input of a convolution's backward"),
               w = in_layout(weight, format, "weight of a convolution's backward");
  Tensor grad_input, grad_weight, grad_bias;
  if (mask[0]) {
    grad_input = at::empty(x.sizes(), x.options(), format);
    log_convolution("gradient of the input");
  }
  if (mask[1]) {
    grad_weight = at::empty(w.sizes(), w.options(), format);
    log_convolution("gradient of the weight");
  }
  if (mask[2]) {
    grad_bias = at::empty({w.size(0)}, w.options());
    gpu::log("launch", "sum of a convolution's gradient for its bias");
  }
  later(x, [=, hg = on_host(g), hx = on_host(x), hw = on_host(w), gi = on_host(grad_input),
            gw = on_host(grad_weight), gb = on_host(grad_bias), s = stride.vec(), p = padding.vec(),
            d = dilation.vec(), o = output_padding.vec(),
            b = bias_sizes.has_value() ? std::optional(bias_sizes->vec()) : std::nullopt] {
    const auto [a, c, e] =
        at::convolution_backward(hg, hx, hw, b ? at::OptionalIntArrayRef(*b) : at::OptionalIntArrayRef(), s,
                                 p, d, transposed, o, groups, mask);
    if (gi.defined()) gi.copy_(a);
    if (gw.defined()) gw.copy_(c);
    if (gb.defined()) gb.copy_(e);
  });
  return {grad_input, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cudnn_batch_norm(const Tensor& input, const Tensor& weight,
                                                            const std::optional<Tensor>& bias,
                                                            const std::optional<Tensor>& mean,
                                                            const std::optional<Tensor>& variance,
                                                            bool training, double momentum, double epsilon) {
  const NamedOp named("aten::cudnn_batch_norm");
  const c10::cuda::CUDAGuard guard(input.device());
  gpu::log("launch", "cuDNN's batch norm");
  Tensor out = at::empty_like(input),
         save_mean = at::empty({training ? weight.numel() : 0}, weight.options()),
         save_inverse = at::empty_like(save_mean), reserve = at::empty({0}, input.options().dtype(at::kByte));
  const auto host = [](const std::optional<Tensor>& t) {
    return t && t->defined() ? std::optional(on_host(*t)) : t;
  };
  later(out, [=, x = on_host(input), w = on_host(weight), b = host(bias), m = host(mean), v = host(variance),
              y = on_host(out), sm = on_host(save_mean), si = on_host(save_inverse)] {
    const auto [r, a, i] = at::native_batch_norm(x, w, b, m, v, training, momentum, epsilon);
    y.copy_(r);
    if (training) {
      sm.copy_(a);
      si.copy_(i);
    }
  });
  return {out, save_mean, save_inverse, reserve};
}

std::tuple<Tensor, Tensor, Tensor> cudnn_batch_norm_backward(
    const Tensor& input, const Tensor& grad_output, const Tensor& weight, const std::optional<Tensor>& mean,
    const std::optional<Tensor>& variance, const std::optional<Tensor>& save_mean,
    const std::optional<Tensor>& save_inverse, double epsilon, const Tensor&) {
  const NamedOp named("aten::cudnn_batch_norm_backward");
  const c10::cuda::CUDAGuard guard(input.device());
  gpu::log("launch", "cuDNN's batch norm, backward");
  Tensor gx = at::empty_like(input), gw = at::empty_like(weight), gb = at::empty_like(weight);
  const auto host = [](const std::optional<Tensor>& t) {
    return t && t->defined() ? std::optional(on_host(*t)) : t;
  };
  later(gx, [=, g = on_host(grad_output), x = on_host(input), w = on_host(weight), m = host(mean),
             v = host(variance), sm = host(save_mean), si = host(save_inverse), hx = on_host(gx),
             hw = on_host(gw), hb = on_host(gb)] {
    const auto [a, b, c] =
        at::native_batch_norm_backward(g, x, w, m, v, sm, si, true, epsilon, {true, true, true});
    hx.copy_(a);
    hw.copy_(b);
    hb.copy_(c);
  });
  return {gx, gw, gb};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("cudnn_convolution", cudnn_convolution);
  m.impl("cudnn_convolution_relu", cudnn_convolution_relu);
  m.impl("cudnn_convolution_add_relu", cudnn_convolution_add_relu);
  m.impl("convolution_backward", convolution_backward);
  m.impl("cudnn_batch_norm", cudnn_batch_norm);
  m.impl("cudnn_batch_norm_backward", cudnn_batch_norm_backward);
}
