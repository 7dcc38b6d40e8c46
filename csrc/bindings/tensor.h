// What bindings know of torch: tensors, devices and errors, through its stable ABI of version 2.10 only, so
// that one build runs with every later torch.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace frcnn {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::contiguous;
using torch::stable::Device;
using torch::stable::empty_like;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

using Ints = torch::headeronly::IntHeaderOnlyArrayRef;
using Floats = torch::headeronly::HeaderOnlyArrayRef<double>;
using Tensors = std::vector<Tensor>;  // of these there is no view
using OptionalTensor = std::optional<Tensor>;

// What a message says of a value: numbers and words as they are, lists as [2, 3], devices as Python has them.
template <typename T>
void put(std::ostream& out, const T& value) {
  out << value;
}
template <typename T>
void put(std::ostream& out, torch::headeronly::HeaderOnlyArrayRef<T> values) {
  out << "[";
  for (size_t i = 0; i < values.size(); ++i) out << (i == 0 ? "" : ", ") << values[i];
  out << "]";
}
inline void put(std::ostream& out, ScalarType type) { out << torch::headeronly::toString(type); }
inline void put(std::ostream& out, const Device& device) {
  if (device.is_cpu()) {
    out << "cpu";
  } else if (device.is_cuda()) {
    out << "cuda";
    if (device.has_index()) out << ":" << static_cast<int>(device.index());
  } else {
    out << "a device of another kind";
  }
}

// RuntimeError in Python, of the parts one after the other.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (put(text, parts), ...);
  throw std::runtime_error(text.str());
}

// The parts are looked at only where the condition does not hold.
#define FRCNN_CHECK(condition, ...)               \
  do {                                            \
    if (!(condition)) ::frcnn::fail(__VA_ARGS__); \
  } while (false)

// The stable ABI does not tell why an allocation failed.
inline Tensor empty(Ints shape, ScalarType type, const Device& device,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  try {
    return torch::stable::empty(shape, type, std::nullopt, device, std::nullopt, format);
  } catch (const std::exception&) {
    fail("out of memory on ", device, ": no room for a tensor of ", type, " with shape ", shape);
  }
}
// Of the type of `like`, and where it is.
inline Tensor empty(Ints shape, const Tensor& like, MemoryFormat format = MemoryFormat::Contiguous) {
  return empty(shape, like.scalar_type(), like.device(), format);
}

// ATen's operators that the stable ABI has no function for, by name; Results tensors come back.
template <size_t Results, typename... Arguments>
std::array<Tensor, Results> aten(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, std::max(Results, sizeof...(Arguments))> stack{
      torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, Results> results;
  for (size_t i = 0; i < Results; ++i) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return results;
}

// In the layout of `like`, whatever its type.
inline Tensor empty_like(const Tensor& like, ScalarType type) {
  const auto same = std::nullopt;
  return aten<1>("aten::empty_like", "", like, std::optional(type), same, same, same, same)[0];
}

// Whether a [B, C, H, W] lies in memory as [B, H, W, C].
inline bool is_channels_last(const Tensor& tensor) {
  int64_t expected = 1;
  for (const int64_t i : {1, 3, 2, 0}) {
    if (tensor.size(i) == 1) continue;
    if (tensor.stride(i) != expected) return false;
    expected *= tensor.size(i);
  }
  return true;
}

inline Tensor converted(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

}  // namespace frcnn
