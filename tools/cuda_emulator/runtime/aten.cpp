// ATen's operators on the emulated device: each kernel registered for CUDA runs as it is, which allocates the
// results, chooses their layout and launches what it launches; then the values are computed on CPU tensors that
// lie in the same memory, as work of the current stream.
//
// The kernels inside this project's own operators call ATen through the dispatcher too, so the same holds there.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/native/ConvUtils.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <string>
#include <unordered_set>
#include <vector>

#include "log.h"
#include "queue.h"

extern "C" void gpu_log_op(const char* name);

namespace {

using at::IValue;
using at::Tensor;
using c10::DispatchKey;
using c10::OperatorHandle;
using torch::jit::Stack;

// The rows logged while it lives name the operator; nested operators are part of the outer one.
class NamedOp {
 public:
  explicit NamedOp(const std::string& name) : outermost_(depth_++ == 0) {
    if (outermost_) gpu_log_op(name.c_str());
  }
  ~NamedOp() {
    --depth_;
    if (outermost_) gpu_log_op("");
  }

 private:
  static thread_local int depth_;
  bool outermost_;
};
thread_local int NamedOp::depth_ = 0;

// For computing on CPU tensors whatever the thread is doing: no autograd, autocast or modes.
struct PlainDispatch {
  c10::impl::ExcludeDispatchKeyGuard autograd{c10::autograd_dispatch_keyset_with_ADInplaceOrView};
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
  c10::impl::ExcludeDispatchKeyGuard modes{
      c10::DispatchKeySet({DispatchKey::Python, DispatchKey::PythonTLSSnapshot})};
};

// A CPU tensor over the same memory; other tensors as they are.
Tensor on_host(const Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), t.options().device(at::kCPU).requires_grad(false));
}

// An argument for the CPU's kernel. What lies on the host now may change before the work is done: copied.
IValue on_host(const IValue& v) {
  const auto host = [](const Tensor& t) {
    return t.defined() && !t.is_cuda() ? t.detach().clone() : on_host(t);
  };
  if (v.isTensor()) return host(v.toTensor());
  if (v.isTensorList()) {
    c10::List<Tensor> out;
    for (const Tensor& t : v.toTensorVector()) out.push_back(host(t));
    return out;
  }
  if (v.isList() && v.toListRef().size() > 0) {
    bool any = false;
    for (const IValue& item : v.toListRef()) any |= item.isTensor();
    if (any) {
      c10::List<std::optional<Tensor>> out;
      for (const IValue& item : v.toListRef())
        out.push_back(item.isNone() ? std::nullopt : std::optional<Tensor>(host(item.toTensor())));
      return out;
    }
  }
  if (v.isDevice()) return c10::Device(at::kCPU);
  return v;
}

template <typename F>
void for_each_tensor(const IValue& v, F f) {
  if (v.isTensor()) {
    if (v.toTensor().defined()) f(v.toTensor());
  } else if (v.isList()) {
    for (const IValue& item : v.toListRef()) for_each_tensor(item, f);
  }
}

// Where an operator runs: the device of its tensors, or the one that it names, or the current one.
c10::Device device_of(at::ArrayRef<IValue> arguments) {
  std::optional<c10::Device> found;
  for (const IValue& v : arguments) {
    for_each_tensor(v, [&](const Tensor& t) {
      if (!found && t.is_cuda()) found = t.device();
    });
    if (!found && v.isDevice() && v.toDevice().is_cuda() && v.toDevice().has_index()) found = v.toDevice();
  }
  return found.value_or(c10::Device(at::kCUDA, c10::cuda::current_device()));
}

gpu::Stream* current_stream(c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  return gpu::stream_of(c10::cuda::getCurrentCUDAStream(device.index()).stream());
}

// CUDA's random numbers are not computed: a generator of the CPU is seeded by the seed and the offset that the
// CUDA generator has before the call, so that state is saved, restored and forked as on a GPU.
at::Generator seeded_by(const IValue& generator, c10::Device device) {
  const at::Generator cuda = generator.isGenerator() && generator.toGenerator().defined()
                                 ? generator.toGenerator()
                                 : at::cuda::detail::getDefaultCUDAGenerator(device.index());
  auto* state = at::check_generator<at::CUDAGeneratorImpl>(cuda);
  return at::make_generator<at::CPUGeneratorImpl>(state->current_seed() * 0x9e3779b97f4a7c15ull +
                                                  state->philox_offset_per_thread());
}

struct Results {
  std::vector<Tensor> given;  // CPU tensors over the results' memory, or undefined where nothing is to be copied
};

// Computes `op` on host arguments later, as work of a stream, and moves what it returns into `results`.
void compute(const OperatorHandle& op, Stack arguments, std::vector<Tensor> results, gpu::Stream* stream,
             std::vector<std::pair<Tensor, std::shared_ptr<Tensor>>> restored) {
  gpu::enqueue(stream, [op, arguments = std::move(arguments), results = std::move(results),
                        restored = std::move(restored)] {
    const PlainDispatch plain;
    for (const auto& [where, what] : restored) where.copy_(*what);
    Stack stack = arguments;
    try {
      op.callBoxed(&stack);
      std::vector<Tensor> computed;
      for (const IValue& v : stack)
        if (v.isTensorList()) {
          for (const Tensor& t : v.toTensorVector()) computed.push_back(t);
        } else {
          computed.push_back(v.isTensor() ? v.toTensor() : Tensor());
        }
      for (size_t i = 0; i < results.size() && i < computed.size(); ++i) {
        if (!results[i].defined() || !computed[i].defined()) continue;
        if (results[i].sizes() != computed[i].sizes()) {
          gpu::fault(toString(op.operator_name()) + " gives another shape on the CPU");
          continue;
        }
        results[i].copy_(computed[i]);
      }
    } catch (const std::exception& e) {
      gpu::fault(toString(op.operator_name()) + " cannot be computed on the CPU: " + e.what());
    }
  });
}

enum class How { kAfterwards, kByValue, kPoison };

// A kernel for CUDA that stands before the one that was registered.
class Emulated : public c10::OperatorKernel {
 public:
  Emulated(const OperatorHandle& op, How how)
      : original_(op.getComputedKernelForDispatchKey(DispatchKey::CUDA)), how_(how), name_(op.schema().name()) {}

  void operator()(const OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const NamedOp named(name_);
    const auto& schema = op.schema();
    const size_t count = schema.arguments().size();
    const Stack arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
    const c10::Device device = device_of(arguments);
    gpu::Stream* stream = current_stream(device);
    if (how_ == How::kByValue) return by_value(op, arguments, device, stream, stack);

    bool host_copy = false;  // the runtime's own copies move the bytes
    Stack host;
    std::vector<std::pair<Tensor, std::shared_ptr<Tensor>>> saved;
    if (how_ == How::kAfterwards) {
      if (name_ == "aten::copy_") host_copy = !arguments[0].toTensor().is_cuda() || !arguments[1].toTensor().is_cuda();
      if (!host_copy) {
        for (size_t i = 0; i < count; ++i) {
          const bool random = schema.arguments()[i].type()->str().find("Generator") != std::string::npos;
          host.push_back(random ? IValue(seeded_by(arguments[i], device)) : on_host(arguments[i]));
        }
        // The original may do its work by other operators that change the same tensor, and those are computed.
        if (name_.back() == '_') {
          for (size_t i = 0; i < count; ++i) {
            const auto* alias = schema.arguments()[i].alias_info();
            if (alias == nullptr || !alias->isWrite()) continue;
            for_each_tensor(host[i], [&](const Tensor& t) {
              auto copy = std::make_shared<Tensor>();
              gpu::enqueue(stream, [t, copy] {
                const PlainDispatch plain;
                *copy = t.clone();
              });
              saved.emplace_back(t, copy);
            });
          }
        }
      }
    }
    original_.callBoxed(op, keys, stack);
    if (host_copy) return;
    const size_t returned = schema.returns().size();
    std::vector<Tensor> results;
    for (size_t i = 0; i < returned; ++i) {
      const IValue& v = (*stack)[stack->size() - returned + i];
      const auto* alias = schema.returns()[i].alias_info();
      const bool fresh = alias == nullptr || !alias->isWrite();
      if (v.isTensorList()) {
        for (const Tensor& t : v.toTensorVector()) results.push_back(fresh ? on_host(t) : Tensor());
      } else {
        results.push_back(fresh && v.isTensor() ? on_host(v.toTensor()) : Tensor());
      }
    }
    if (how_ == How::kPoison) {
      // memory that nobody has written: NaN in every floating-point type
      for (const Tensor& t : results)
        if (t.numel() > 0)
          gpu::enqueue(stream, [p = t.data_ptr(), n = t.nbytes()] { std::memset(p, 0xff, n); });
      return;
    }
    // an out= tensor may have been resized, so its host form is made after the call
    for (size_t i = 0; i < count; ++i) {
      const auto* alias = schema.arguments()[i].alias_info();
      if (alias != nullptr && alias->isWrite() && schema.arguments()[i].is_out()) host[i] = on_host(arguments[i]);
    }
    compute(op, std::move(host), std::move(results), stream, std::move(saved));
  }

 private:
  // The result's size depends on values: the host waits for them, as CUDA's kernel does.
  static void by_value(const OperatorHandle& op, const Stack& arguments, c10::Device device, gpu::Stream* stream,
                       Stack* stack) {
    gpu::log("sync", op.schema().name() + " reads values");
    if (gpu::forbidden_in_capture(op.schema().name().c_str()) != cudaSuccess)
      TORCH_CHECK(false, op.schema().name(), " inside a capture");
    gpu::wait_for(stream);
    Stack host;
    for (const IValue& v : arguments) host.push_back(on_host(v));
    {
      const PlainDispatch plain;
      op.callBoxed(&host);
    }
    torch::jit::drop(*stack, arguments.size());
    for (const IValue& v : host) {
      if (!v.isTensor()) {
        torch::jit::push(*stack, v);
        continue;
      }
      const Tensor on_cpu = v.toTensor();
      Tensor result = at::empty_strided(on_cpu.sizes(), on_cpu.strides(), on_cpu.options().device(device));
      gpu::enqueue(stream, [target = on_host(result), on_cpu] {
        const PlainDispatch plain;
        target.copy_(on_cpu);
      });
      torch::jit::push(*stack, result);
    }
  }

  c10::SafeKernelFunction original_;
  How how_;
  std::string name_;
};

// ---- cuDNN's operators, whose library needs a GPU -------------------------------------------------------------

Tensor in_layout(const Tensor& t, at::MemoryFormat format, const char* what) {
  if (t.is_contiguous(format)) return t;
  gpu::log("layout", what, t.nbytes());
  return t.contiguous(format);
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
  gpu::log("conv", name);
  std::vector<int64_t> size = at::native::conv_output_size(input.sizes(), filter.sizes(), padding, stride, dilation);
  Tensor out = at::empty(size, input.options(), format);
  later(out, [=, x = on_host(input), w = on_host(filter), y = on_host(out),
              add = z ? on_host(*z) : Tensor(), b = bias && bias->defined() ? std::optional(on_host(*bias)) : bias,
              s = stride.vec(), p = padding.vec(), d = dilation.vec()] {
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
    gpu::log("conv", "gradient of the input");
  }
  if (mask[1]) {
    grad_weight = at::empty(w.sizes(), w.options(), format);
    gpu::log("conv", "gradient of the weight");
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
        at::convolution_backward(hg, hx, hw, b ? at::OptionalIntArrayRef(*b) : at::OptionalIntArrayRef(), s, p,
                                 d, transposed, o, groups, mask);
    if (gi.defined()) gi.copy_(a);
    if (gw.defined()) gw.copy_(c);
    if (gb.defined()) gb.copy_(e);
  });
  return {grad_input, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cudnn_batch_norm(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& mean, const std::optional<Tensor>& variance, bool training, double momentum,
    double epsilon) {
  const NamedOp named("aten::cudnn_batch_norm");
  const c10::cuda::CUDAGuard guard(input.device());
  gpu::log("launch", "cuDNN's batch norm");
  Tensor out = at::empty_like(input), save_mean = at::empty({training ? weight.numel() : 0}, weight.options()),
         save_inverse = at::empty_like(save_mean),
         reserve = at::empty({0}, input.options().dtype(at::kByte));
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

// ---- registration -------------------------------------------------------------------------------------------

// Nothing to compute: they read a value through the runtime, or only change what a tensor says of its memory.
const std::unordered_set<std::string> kOnlyMetadata = {
    "aten::_local_scalar_dense", "aten::resize_",      "aten::set_",      "aten::record_stream",
    "aten::_pin_memory",         "aten::is_pinned",    "aten::resize",    "aten::_resize_output_",
    "aten::_record_stream",      "aten::_has_same_storage_numel",
};
const std::unordered_set<std::string> kEmpty = {"aten::empty", "aten::empty_strided"};
// Where the result's size depends on values; and prod, whose kernel CUDA compiles as it runs, for a real GPU.
const std::unordered_set<std::string> kByValue = {
    "aten::prod", "aten::equal",
    "aten::nonzero",  "aten::masked_select",       "aten::_unique2",         "aten::unique_dim",
    "aten::bincount", "aten::repeat_interleave",   "aten::unique_consecutive", "aten::_unique",
};
const std::unordered_set<std::string> kOwn = {
    "aten::cudnn_convolution",          "aten::cudnn_convolution_relu", "aten::cudnn_convolution_add_relu",
    "aten::convolution_backward",       "aten::cudnn_batch_norm",       "aten::cudnn_batch_norm_backward",
};

bool is_view(const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns())
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) return true;
  return false;
}

std::vector<c10::RegistrationHandleRAII>& registered() {
  static auto* handles = new std::vector<c10::RegistrationHandleRAII>;
  return *handles;
}

void stand_before_all() {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0 || kOnlyMetadata.count(name.name) || kOwn.count(name.name)) continue;
    const auto op = dispatcher.findSchema(name);
    // copy_ is one kernel for all devices
    if (!op || is_view(op->schema()) ||
        !(op->hasKernelForDispatchKey(DispatchKey::CUDA) || name.name == "aten::copy_"))
      continue;
    const bool out = !op->schema().arguments().empty() && op->schema().arguments().back().is_out();
    const How how = kEmpty.count(name.name) ? How::kPoison
                    : kByValue.count(name.name) && !out ? How::kByValue
                                                       : How::kAfterwards;
    registered().push_back(dispatcher.registerImpl(
        name, DispatchKey::CUDA, c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<Emulated>(*op, how)),
        std::nullopt, nullptr, "emulated GPU"));
  }
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

// Once, after torch has loaded its CUDA library.
extern "C" void gpu_compute_aten() { stand_before_all(); }
