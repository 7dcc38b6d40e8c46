// What the files that compute torch's operators share.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <string>

#include "log.h"
#include "queue.h"

extern "C" void gpu_log_op(const char* name);

namespace gpu {

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
  bool outermost() const { return outermost_; }

 private:
  static inline thread_local int depth_ = 0;
  bool outermost_;
};

// For computing on CPU tensors whatever the thread is doing: no autograd, autocast or modes.
struct PlainDispatch {
  c10::impl::ExcludeDispatchKeyGuard autograd{c10::autograd_dispatch_keyset_with_ADInplaceOrView};
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
  c10::impl::ExcludeDispatchKeyGuard modes{
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot})};
};

// A CPU tensor over the same memory; other tensors as they are.
inline at::Tensor on_host(const at::Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(),
                       t.options().device(at::kCPU).requires_grad(false));
}

inline Stream* current_stream(c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  return stream_of(c10::cuda::getCurrentCUDAStream(device.index()).stream());
}

}  // namespace gpu
