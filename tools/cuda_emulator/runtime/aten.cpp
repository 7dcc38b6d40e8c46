// ATen's operators on the emulated device: each kernel registered for CUDA runs as it is, which allocates the
// results, chooses their layout and launches what it launches; then the values are computed on CPU tensors
// that lie in the same memory, as work of the current stream.
//
// The kernels inside this project's own operators call ATen through the dispatcher too, so the same holds
// there.
#include "aten.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>

#include <string>
#include <unordered_set>
#include <vector>

namespace {

using at::IValue;
using at::Tensor;
using c10::DispatchKey;
using c10::OperatorHandle;
using gpu::current_stream;
using gpu::NamedOp;
using gpu::on_host;
using gpu::PlainDispatch;
using torch::jit::Stack;

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

// CUDA's random numbers are not computed: a generator of the CPU is seeded by the seed and the offset that
// the CUDA generator has before the call, so that state is saved, restored and forked as on a GPU.
at::Generator seeded_by(const IValue& generator, c10::Device device) {
  const at::Generator cuda = generator.isGenerator() && generator.toGenerator().defined()
                                 ? generator.toGenerator()
                                 : at::cuda::detail::getDefaultCUDAGenerator(device.index());
  auto* state = at::check_generator<at::CUDAGeneratorImpl>(cuda);
  return at::make_generator<at::CPUGeneratorImpl>(state->current_seed() * 0x9e3779b97f4a7c15ull +
                                                  state->philox_offset_per_thread());
}

// Computes `op` on host arguments later, as work of a stream, and moves what it returns into `results`, CPU
// tensors over the results' memory, undefined where nothing is to be moved.
// outermost: an operator inside another's kernel may be given what that kernel has not computed, and fail;
// what the outer one gives is computed after it in any case.
void compute(const OperatorHandle& op, Stack arguments, std::vector<Tensor> results, gpu::Stream* stream,
             std::vector<std::pair<Tensor, std::shared_ptr<Tensor>>> restored, bool outermost) {
  gpu::enqueue(stream, [op, arguments = std::move(arguments), results = std::move(results),
                        restored = std::move(restored), outermost] {
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
        // an empty one is a buffer that only the CPU's kernel uses
        if (!results[i].defined() || !computed[i].defined() || results[i].numel() == 0) continue;
        if (results[i].sizes() != computed[i].sizes()) {
          if (outermost) gpu::fault(toString(op.operator_name()) + " gives another shape on the CPU");
          continue;
        }
        results[i].copy_(computed[i]);
      }
    } catch (const c10::Error& e) {
      if (outermost)
        gpu::fault(toString(op.operator_name()) + " cannot be computed: " + e.what_without_backtrace());
    }
  });
}

enum class How { kByTheCpu, kByValue, kPoison };

// A kernel for CUDA that stands before the one that was registered.
class Emulated : public c10::OperatorKernel {
 public:
  Emulated(const OperatorHandle& op, How how)
      : original_(op.getComputedKernelForDispatchKey(DispatchKey::CUDA)),
        how_(how),
        name_(op.schema().name()) {}

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
    if (how_ == How::kByTheCpu) {
      if (name_ == "aten::copy_")
        host_copy = !arguments[0].toTensor().is_cuda() || !arguments[1].toTensor().is_cuda();
      if (!host_copy) {
        for (size_t i = 0; i < count; ++i) {
          const bool random = schema.arguments()[i].type()->str().find("Generator") != std::string::npos;
          host.push_back(random ? IValue(seeded_by(arguments[i], device)) : on_host(arguments[i]));
        }
        // The original may do its work by other operators that change the same tensor, and those are
        // computed.
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
      if (alias != nullptr && alias->isWrite() && schema.arguments()[i].is_out())
        host[i] = on_host(arguments[i]);
    }
    compute(op, std::move(host), std::move(results), stream, std::move(saved), named.outermost());
  }

 private:
  // The result's size depends on values: the host waits for them, as CUDA's kernel does.
  static void by_value(const OperatorHandle& op, const Stack& arguments, c10::Device device,
                       gpu::Stream* stream, Stack* stack) {
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

// ---- registration ----------------------------------------------------------------------------------------

// Nothing to compute: they read a value through the runtime, or only change what a tensor says of its memory.
const std::unordered_set<std::string> kOnlyMetadata = {
    "aten::_local_scalar_dense",
    "aten::resize_",
    "aten::set_",
    "aten::record_stream",
    "aten::_pin_memory",
    "aten::is_pinned",
    "aten::resize",
    "aten::_resize_output_",
    "aten::_record_stream",
    "aten::_has_same_storage_numel",
};
const std::unordered_set<std::string> kEmpty = {"aten::empty", "aten::empty_strided"};
// Where the result's size depends on values; and prod, whose kernel CUDA compiles as it runs, for a real GPU.
const std::unordered_set<std::string> kByValue = {
    "aten::prod",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
    "aten::repeat_interleave",
    "aten::unique_consecutive",
    "aten::_unique",
};
const std::unordered_set<std::string> kOwn = {
    "aten::cudnn_convolution",    "aten::cudnn_convolution_relu", "aten::cudnn_convolution_add_relu",
    "aten::convolution_backward", "aten::cudnn_batch_norm",       "aten::cudnn_batch_norm_backward",
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
    if (name.name.rfind("aten::", 0) != 0 || kOnlyMetadata.count(name.name) || kOwn.count(name.name))
      continue;
    const auto op = dispatcher.findSchema(name);
    // copy_ is one kernel for all devices
    if (!op || is_view(op->schema()) ||
        !(op->hasKernelForDispatchKey(DispatchKey::CUDA) || name.name == "aten::copy_"))
      continue;
    const bool out = !op->schema().arguments().empty() && op->schema().arguments().back().is_out();
    const How how = kEmpty.count(name.name)             ? How::kPoison
                    : kByValue.count(name.name) && !out ? How::kByValue
                                                        : How::kByTheCpu;
    registered().push_back(dispatcher.registerImpl(
        name, DispatchKey::CUDA,
        c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<Emulated>(*op, how)), std::nullopt,
        nullptr, "emulated GPU"));
  }
}

}  // namespace

// Once, after torch has loaded its CUDA library.
extern "C" void gpu_compute_aten() { stand_before_all(); }
