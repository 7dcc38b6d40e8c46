// IoU-family losses of aligned pairs: decode, loss, weight and reduction in one launch; everything of the
// gradient in another.
//
// Bound by bytes, and at training sizes by the launch: 512 RoIs read 32 to 52 bytes each and write 4 to 16
// back, 30 KB. What it saves is the op chain, 40 to 90 launches forward and backward. Sums are taken in
// float64 over a fixed tree: threads stride over the pairs, a block adds its threads pairwise, and the block
// that finishes last adds the blocks' sums in their order; the same bits every time.
// Nothing was measured on a GPU.
#include "../box.h"
#include "block_sum.h"
#include "dtypes.h"
#include "last_block.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256, kMostBlocks = 256;

template <typename T>
struct Pairs {
  const T *pred, *target, *weight, *boxes;
  Delta<T> stds;
  int64_t count;
  IouLoss mode;
  T eps, beta;

  __device__ __forceinline__ Delta<T> delta(int64_t i) const {
    const Box<T> v = load_box(pred + 4 * i);
    return {v.x1, v.y1, v.x2, v.y2};
  }
  __device__ __forceinline__ Box<T> box(int64_t i) const {
    return boxes != nullptr ? decode(load_box(boxes + 4 * i), delta(i), stds) : load_box(pred + 4 * i);
  }
  __device__ __forceinline__ T factor(int64_t i) const { return weight != nullptr ? weight[i] : T(1); }
};

// The weighted losses of pair i, one or four.
template <typename T>
__device__ __forceinline__ Delta<T> losses(const Pairs<T>& pairs, int64_t i) {
  const Box<T> box = pairs.box(i), target = load_box(pairs.target + 4 * i);
  const T w = pairs.factor(i);
  if (pairs.mode != IouLoss::kBounded)
    return {iou_loss(pairs.mode, box, target, pairs.eps).value * w, T(0), T(0), T(0)};
  const Delta<T> v = bounded_iou_loss(box, target, pairs.beta, pairs.eps);
  return {v.dx * w, v.dy * w, v.dw * w, v.dh * w};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) each_kernel(Pairs<T> pairs, T* __restrict__ out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= pairs.count) return;
  const Delta<T> v = losses(pairs, i);
  if (pairs.mode == IouLoss::kBounded) {
    store_box(out + 4 * i, Box<T>{v.dx, v.dy, v.dw, v.dh});
  } else {
    out[i] = v.dx;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(Pairs<T> pairs, double divisor, double* __restrict__ partial, unsigned* __restrict__ finished,
               T* __restrict__ out) {
  FRCNN_SHARED(of_warp, double[kThreads / 32]);
  FRCNN_SHARED(last, bool);
  const int t = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + t; i < pairs.count; i += int64_t{gridDim.x} * kThreads) {
    const Delta<T> v = losses(pairs, i);
    sum += static_cast<double>(v.dx) + static_cast<double>(v.dy) + static_cast<double>(v.dw) +
           static_cast<double>(v.dh);
  }
  sum = block_sum<kThreads>(sum, of_warp);
  if (gridDim.x == 1) {
    if (t == 0) *out = static_cast<T>(sum / divisor);
    return;
  }
  if (t == 0) partial[blockIdx.x] = sum;
  if (!ends_last(finished, gridDim.x, last)) return;
  sum = block_sum<kThreads>(t < static_cast<int>(gridDim.x) ? partial[t] : 0.0, of_warp);
  if (t == 0) *out = static_cast<T>(sum / divisor);
}

// Asking for two blocks per multiprocessor gives ptxas the registers it spills without (on sm_80 and sm_90).
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_kernel(Pairs<T> pairs, const T* __restrict__ grad, bool reduced, T share,
                    T* __restrict__ grad_pred) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= pairs.count) return;
  const Box<T> box = pairs.box(i), target = load_box(pairs.target + 4 * i);
  const T factor = pairs.factor(i) * share;
  Box<T> by_box;
  if (pairs.mode == IouLoss::kBounded) {
    Box<T> g;
    if (reduced) {
      g = {grad[0], grad[0], grad[0], grad[0]};
    } else {
      g = load_box(grad + 4 * i);
    }
    by_box = bounded_iou_loss_grad(box, target, pairs.beta, pairs.eps,
                                   Delta<T>{g.x1 * factor, g.y1 * factor, g.x2 * factor, g.y2 * factor});
  } else {
    by_box = detail::scale(grad[reduced ? 0 : i] * factor, iou_loss(pairs.mode, box, target, pairs.eps).grad);
  }
  if (pairs.boxes != nullptr) {
    const Delta<T> d = decode_grad(load_box(pairs.boxes + 4 * i), pairs.delta(i), pairs.stds, by_box);
    by_box = {d.dx, d.dy, d.dw, d.dh};
  }
  store_box(grad_pred + 4 * i, by_box);
}

template <typename T>
Pairs<T> pairs_of(const void* pred, const void* target, const void* weight, const void* boxes,
                  const double* stds, int64_t n, int64_t mode, double eps, double beta) {
  return {static_cast<const T*>(pred),
          static_cast<const T*>(target),
          static_cast<const T*>(weight),
          static_cast<const T*>(boxes),
          stds_of<T>(stds),
          n,
          static_cast<IouLoss>(mode),
          static_cast<T>(eps),
          static_cast<T>(beta)};
}

int64_t values_of(int64_t mode) { return static_cast<IouLoss>(mode) == IouLoss::kBounded ? 4 : 1; }

// One block reduces what it can in about the time of a launch; more share the work.
unsigned sum_blocks(int64_t n) {
  if (n <= 8 * kThreads) return 1;
  const int64_t blocks = div_up<int64_t>(n, 4 * kThreads);
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

}  // namespace
}  // namespace frcnn

extern "C" {

int64_t frcnn_cuda_iou_loss_workspace(int64_t n) {
  return static_cast<int64_t>(frcnn::sum_blocks(n) * sizeof(double) + sizeof(double));
}

int frcnn_cuda_iou_loss(int64_t type, const void* pred, const void* target, const void* weight,
                        const void* boxes, const double* stds, int64_t n, int64_t mode, double eps,
                        double beta, int64_t reduction, void* workspace, void* out, cudaStream_t stream) {
  using namespace frcnn;
  dim3 each;
  if (!blocks_for(n, kThreads, &each)) return cudaErrorInvalidValue;
  return for_box_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const Pairs<T> pairs = pairs_of<T>(pred, target, weight, boxes, stds, n, mode, eps, beta);
    if (reduction == kFrcnnNone) {
      if (n == 0) return cudaSuccess;
      return launch(each_kernel<T>, each, dim3(kThreads), 0, stream, pairs, static_cast<T*>(out));
    }
    const int64_t values = n * values_of(mode);
    const double divisor = reduction == kFrcnnMean && values > 0 ? static_cast<double>(values) : 1.0;
    const unsigned blocks = sum_blocks(n);
    unsigned* const finished = static_cast<unsigned*>(workspace);
    if (blocks > 1) {
      const cudaError_t error = cudaMemsetAsync(finished, 0, sizeof(unsigned), stream);
      if (error != cudaSuccess) return error;
    }
    return launch(sum_kernel<T>, dim3(blocks), dim3(kThreads), 0, stream, pairs, divisor,
                  static_cast<double*>(workspace) + 1, finished, static_cast<T*>(out));
  });
}

int frcnn_cuda_iou_loss_backward(int64_t type, const void* grad, const void* pred, const void* target,
                                 const void* weight, const void* boxes, const double* stds, int64_t n,
                                 int64_t mode, double eps, double beta, int64_t reduction, void* grad_pred,
                                 cudaStream_t stream) {
  using namespace frcnn;
  dim3 blocks;
  if (n == 0) return cudaSuccess;
  if (!blocks_for(n, kThreads, &blocks)) return cudaErrorInvalidValue;
  return for_box_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const Pairs<T> pairs = pairs_of<T>(pred, target, weight, boxes, stds, n, mode, eps, beta);
    const T share = reduction == kFrcnnMean ? T(1) / static_cast<T>(n * values_of(mode)) : T(1);
    return launch(gradient_kernel<T>, blocks, dim3(kThreads), 0, stream, pairs, static_cast<const T*>(grad),
                  reduction != kFrcnnNone, share, static_cast<T*>(grad_pred));
  });
}
}
