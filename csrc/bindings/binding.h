// What the bindings of the operators share. A binding is all that torch knows of an operator: its schema,
// what it asks of its arguments, its outputs and workspace. One function serves every device: FRCNN_RUN calls
// the CPU or the CUDA kernel of kernel_api.h, the latter on the current stream. Nothing here synchronizes,
// but for the number of boxes that the list form of nms returns.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../kernel_api.h"
#include "expect.h"

#ifdef FRCNN_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

namespace frcnn {
// A launcher refuses what its 32-bit counters and grids cannot hold, before it launches anything, and what
// needs more shared memory than the GPU has.
inline void expect_launched(const char* op, int error) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next operator, which has done nothing wrong, would report it
  TORCH_CHECK(
      error != cudaErrorInvalidValue, op,
      ": the sizes are more than the CUDA kernel counts in 32 bits; split the call over images or boxes");
  TORCH_CHECK(
      error != cudaErrorLaunchOutOfResources, op,
      ": a block of the CUDA kernel needs more shared memory or registers than this GPU has; run it on the "
      "CPU, or build for this GPU with TORCH_CUDA_ARCH_LIST");
  C10_CUDA_CHECK(static_cast<cudaError_t>(error));
}
inline FrcnnStream stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
}  // namespace frcnn

#define FRCNN_RUN(name, device, ...)                                                                       \
  ((device).is_cuda() ? ::frcnn::expect_launched(#name, frcnn_cuda_##name(__VA_ARGS__, ::frcnn::stream())) \
                      : frcnn_cpu_##name(__VA_ARGS__))
#define FRCNN_WORKSPACE_OF(name, device, ...)                      \
  ((device).is_cuda() ? frcnn_cuda_##name##_workspace(__VA_ARGS__) \
                      : frcnn_cpu_##name##_workspace(__VA_ARGS__))
#else
#define FRCNN_RUN(name, device, ...) frcnn_cpu_##name(__VA_ARGS__)
#define FRCNN_WORKSPACE_OF(name, device, ...) frcnn_cpu_##name##_workspace(__VA_ARGS__)
#endif

namespace frcnn {

// Defines an operator, with one function for the CPU and, in a build with CUDA, for CUDA.
template <typename Function>
void define(torch::Library& m, const std::string& schema, Function* function) {
  const std::string name = schema.substr(0, schema.find('('));
  m.def(schema.c_str());
  m.impl(name.c_str(), torch::dispatch(c10::DispatchKey::CPU, function));
#ifdef FRCNN_CUDA
  m.impl(name.c_str(), torch::dispatch(c10::DispatchKey::CUDA, function));
#endif
}

inline int64_t type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return kFrcnnFloat;
    case at::kDouble:
      return kFrcnnDouble;
    case at::kHalf:
      return kFrcnnHalf;
    default:
      return kFrcnnBfloat16;
  }
}

inline at::Tensor contiguous_or_none(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->contiguous() : at::Tensor();
}
template <typename T = void>
const T* pointer_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}
inline at::Tensor workspace(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

// What only the CUDA kernels limit.
inline void expect_at_most(const char* op, const char* name, at::Device device, int64_t count, int64_t most) {
  TORCH_CHECK(!device.is_cuda() || count <= most, op, ": ", count, " ", name,
              " are more than the CUDA kernel takes (", most, "); split the call");
}

}  // namespace frcnn
