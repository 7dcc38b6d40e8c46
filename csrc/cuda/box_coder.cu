// Boxes to deltas, deltas to boxes, and the gradient of the latter; one thread per (box, class).
//
// Bound by bytes: 48 per box (two boxes read, one written), 64 for the gradient. 512 RoIs x 80 classes decode
// in 1.3 MB: less than a launch. Consecutive threads hold consecutive quadruples, so that a warp's accesses
// fill whole lines, whichever of the four values comes first.
// Nothing was measured on a GPU.
#include "../box.h"
#include "dtypes.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256;

// The image's size where boxes are clipped.
template <typename T>
struct Clip {
  bool on;
  T height, width;
};

template <typename T>
__device__ __forceinline__ Delta<T> load_delta(const T* p) {
  const Box<T> v = load_box(p);
  return {v.x1, v.y1, v.x2, v.y2};
}
template <typename T>
__device__ __forceinline__ void store_delta(T* p, const Delta<T>& d) {
  store_box(p, Box<T>{d.dx, d.dy, d.dw, d.dh});
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    encode_kernel(const T* __restrict__ boxes, const T* __restrict__ targets, Delta<T> stds, int64_t n,
                  T* __restrict__ deltas) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) store_delta(deltas + i * 4, encode(load_box(boxes + i * 4), load_box(targets + i * 4), stds));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const T* __restrict__ boxes, const T* __restrict__ deltas, Delta<T> stds, Clip<T> clipping,
                  int64_t count, int64_t classes, T* __restrict__ out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  Box<T> box = decode(load_box(boxes + i / classes * 4), load_delta(deltas + i * 4), stds);
  if (clipping.on) box = clip(box, clipping.height, clipping.width);
  store_box(out + i * 4, box);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    decode_backward_kernel(const T* __restrict__ grad, const T* __restrict__ boxes,
                           const T* __restrict__ deltas, Delta<T> stds, Clip<T> clipping, int64_t count,
                           int64_t classes, T* __restrict__ grad_deltas) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const Box<T> box = load_box(boxes + i / classes * 4);
  const Delta<T> delta = load_delta(deltas + i * 4);
  Box<T> g = load_box(grad + i * 4);
  if (clipping.on) g = clip_grad(decode(box, delta, stds), clipping.height, clipping.width, g);
  store_delta(grad_deltas + i * 4, decode_grad(box, delta, stds, g));
}

template <typename T>
Clip<T> clip_of(const int64_t* max_shape) {
  if (max_shape == nullptr) return {false, T(0), T(0)};
  return {true, static_cast<T>(max_shape[0]), static_cast<T>(max_shape[1])};
}

}  // namespace
}  // namespace frcnn

extern "C" {

int frcnn_cuda_encode_boxes(int64_t type, const void* boxes, const void* targets, const double* stds,
                            int64_t n, void* deltas, cudaStream_t stream) {
  using namespace frcnn;
  dim3 blocks;
  if (n == 0) return cudaSuccess;
  if (!blocks_for(n, kThreads, &blocks)) return cudaErrorInvalidValue;
  return for_box_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return launch(encode_kernel<T>, blocks, dim3(kThreads), 0, stream, static_cast<const T*>(boxes),
                  static_cast<const T*>(targets), stds_of<T>(stds), n, static_cast<T*>(deltas));
  });
}

int frcnn_cuda_decode_boxes(int64_t type, const void* boxes, const void* deltas, const double* stds,
                            const int64_t* max_shape, int64_t n, int64_t classes, void* out,
                            cudaStream_t stream) {
  using namespace frcnn;
  dim3 blocks;
  if (n * classes == 0) return cudaSuccess;
  if (!blocks_for(n * classes, kThreads, &blocks)) return cudaErrorInvalidValue;
  return for_box_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return launch(decode_kernel<T>, blocks, dim3(kThreads), 0, stream, static_cast<const T*>(boxes),
                  static_cast<const T*>(deltas), stds_of<T>(stds), clip_of<T>(max_shape), n * classes,
                  classes, static_cast<T*>(out));
  });
}

int frcnn_cuda_decode_boxes_backward(int64_t type, const void* grad, const void* boxes, const void* deltas,
                                     const double* stds, const int64_t* max_shape, int64_t n, int64_t classes,
                                     void* grad_deltas, cudaStream_t stream) {
  using namespace frcnn;
  dim3 blocks;
  if (n * classes == 0) return cudaSuccess;
  if (!blocks_for(n * classes, kThreads, &blocks)) return cudaErrorInvalidValue;
  return for_box_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return launch(decode_backward_kernel<T>, blocks, dim3(kThreads), 0, stream, static_cast<const T*>(grad),
                  static_cast<const T*>(boxes), static_cast<const T*>(deltas), stds_of<T>(stds),
                  clip_of<T>(max_shape), n * classes, classes, static_cast<T*>(grad_deltas));
  });
}
}
