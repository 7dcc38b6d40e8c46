// What the bindings of the operators share. A binding is all that torch knows of an operator: its schema,
// what it asks of its arguments, its outputs and workspace. One function serves every device: FRCNN_RUN calls
// the CPU or the CUDA kernel of kernel_api.h, the latter on the current stream. Nothing here synchronizes,
// but for the number of boxes that the list form of nms returns.
#pragma once

#ifdef FRCNN_CUDA
#include <cuda_runtime.h>
#endif

#include <tuple>

#include "../kernel_api.h"
#include "expect.h"

#ifdef FRCNN_CUDA
namespace frcnn {
// A launcher refuses what its 32-bit counters and grids cannot hold, before it launches anything, and what
// needs more shared memory than the GPU has.
inline void expect_launched(const char* op, int error) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next operator, which has done nothing wrong, would report it
  FRCNN_CHECK(
      error != cudaErrorInvalidValue, op,
      ": the sizes are more than the CUDA kernel counts in 32 bits; split the call over images or boxes");
  FRCNN_CHECK(
      error != cudaErrorLaunchOutOfResources, op,
      ": a block of the CUDA kernel needs more shared memory or registers than this GPU has; run it on the "
      "CPU, or build for this GPU with TORCH_CUDA_ARCH_LIST");
  fail(op, ": CUDA says: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
}
// Of the current device.
inline FrcnnStream stream() {
  void* handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(torch::stable::accelerator::getCurrentDeviceIndex(), &handle));
  return static_cast<FrcnnStream>(handle);
}
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

// FRCNN_OPERATOR(function, "name(Tensor x) -> Tensor") defines an operator, with one function for the CPU
// and, in a build with CUDA, for CUDA.
#define FRCNN_DEFINE(schema) \
  STABLE_TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) { m.def(schema); }
#define FRCNN_IMPLEMENT(function, schema, key)                      \
  STABLE_TORCH_LIBRARY_IMPL(frcnn_ops, key, m) {                    \
    m.impl(::frcnn::name_in(schema).c_str(), TORCH_BOX(&function)); \
  }
#ifdef FRCNN_CUDA
#define FRCNN_OPERATOR(function, schema) \
  FRCNN_DEFINE(schema)                   \
  FRCNN_IMPLEMENT(function, schema, CPU) \
  FRCNN_IMPLEMENT(function, schema, CUDA)
#else
#define FRCNN_OPERATOR(function, schema) \
  FRCNN_DEFINE(schema)                   \
  FRCNN_IMPLEMENT(function, schema, CPU)
#endif

namespace frcnn {

inline std::string name_in(const std::string& schema) { return schema.substr(0, schema.find('(')); }

// A guard of the CPU has nothing to do.
class OnDevice {
 public:
  explicit OnDevice(const Device& device) {
    if (device.is_cuda()) guard_.emplace(device.index());
  }

 private:
  std::optional<DeviceGuard> guard_;
};

inline int64_t type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return kFrcnnFloat;
    case ScalarType::Double:
      return kFrcnnDouble;
    case ScalarType::Half:
      return kFrcnnHalf;
    default:
      return kFrcnnBfloat16;
  }
}

// A loss of what a network says: in float32 also of half precision.
inline ScalarType loss_type(const Tensor& of) {
  return of.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline OptionalTensor contiguous_or_none(const OptionalTensor& tensor,
                                         MemoryFormat format = MemoryFormat::Contiguous) {
  OptionalTensor made;
  if (tensor.has_value()) made.emplace(contiguous(*tensor, format));
  return made;
}
inline const void* pointer_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}
template <typename T>
const T* pointer_or_null(const OptionalTensor& tensor) {
  return static_cast<const T*>(pointer_or_null(tensor));
}
inline Tensor workspace(int64_t bytes, const Tensor& like) {
  return empty({bytes}, ScalarType::Byte, like.device());
}

// What only the CUDA kernels limit: the images of a batch are a dimension of a grid, pixels and packs are
// counted in 32 bits.
inline void expect_at_most(const char* op, const char* name, const Device& device, int64_t count,
                           int64_t most, const char* remedy = "split the call") {
  FRCNN_CHECK(!device.is_cuda() || count <= most, op, ": ", count, " ", name,
              " are more than the CUDA kernel takes (", most, "); ", remedy);
}
inline void expect_images(const char* op, const Device& device, int64_t images) {
  expect_at_most(op, "images", device, images, 65535);
}
// What a block of the current GPU keeps in shared memory.
inline void expect_in_block(const char* op, const char* name, const Device& device, int64_t count,
                            const char* remedy) {
#ifdef FRCNN_CUDA
  int64_t most = 0;
  if (device.is_cuda()) expect_launched(op, frcnn_cuda_nms_block(&most));
  expect_at_most(op, name, device, count, most, remedy);
#endif
}

}  // namespace frcnn
