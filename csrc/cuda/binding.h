// What the bindings of the operators share. A binding registers its kernels with torch: checks, device guard,
// outputs and workspace, one or a few launchers on the current stream. What knows torch is here and in the
// *_binding.cpp; nothing there synchronizes, but for the number of boxes that the list form of nms returns.
#pragma once

#include <ATen/Functions.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "kernel_api.h"

namespace frcnn {

using c10::cuda::CUDAGuard;

inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

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
inline const void* pointer_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}
inline at::Tensor workspace(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

// A launcher refuses what its 32-bit counters and grids cannot hold, before it launches anything.
inline void expect_launched(const char* op, cudaError_t error) {
  TORCH_CHECK(error != cudaErrorInvalidValue, op,
              ": the sizes are more than the CUDA kernel counts in 32 bits; "
              "split the call over images or boxes");
  C10_CUDA_CHECK(error);
}

inline void expect_at_most(const char* op, const char* name, size_t count, size_t most) {
  TORCH_CHECK(count <= most, op, ": ", count, " ", name, " are more than the CUDA kernel takes (", most, ")");
}

}  // namespace frcnn
