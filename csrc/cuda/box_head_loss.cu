// The box head's losses, straight from its outputs: a warp takes a row, then one block adds up the rows. The
// gradient is one more launch.
//
// Bound by latency: 1024 rows of 401 numbers are 1.6 MB, of which the losses read a fifth; the gradient
// writes all of it. What it saves is some forty launches. Sums over rows are taken in float64, all sums over
// fixed trees: the same bits every time.
// Nothing was measured on a GPU.
#include "../box_samples.h"
#include "block_sum.h"
#include "dtypes.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256, kRows = kThreads / 32;  // of a block

template <typename C>
__device__ __forceinline__ C warp_largest(C v) {
  for (int step = 16; step > 0; step /= 2) v = max_of(__shfl_xor_sync(kFullWarp, v, step), v);
  return v;
}
template <typename C>
__device__ __forceinline__ C warp_sum(C v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kFullWarp, v, step);
  return v;
}

// Of a row's logits, in every thread of its warp: the largest, and the sum of their exponentials by it. NaN
// where one is NaN.
template <typename C>
struct Softmax {
  C largest, sum;
};
template <typename T>
__device__ __forceinline__ Softmax<compute_t<T>> softmax_of(const T* logits, int count, int lane) {
  using C = compute_t<T>;
  C largest = static_cast<C>(-INFINITY), sum = C(0);
  for (int i = lane; i < count; i += 32) largest = max_of<C>(widen(logits[i]), largest);
  largest = warp_largest(largest);
  for (int i = lane; i < count; i += 32) sum += std::exp(widen(logits[i]) - largest);
  return {largest, warp_sum(sum)};
}

template <typename T>
__device__ __forceinline__ Delta<compute_t<T>> delta_at(const T* d) {
  return {widen(d[0]), widen(d[1]), widen(d[2]), widen(d[3])};
}

// of_row: [rows, 3], losses of class and box and 1 where the class is right
template <typename T>
__global__ void __launch_bounds__(kThreads)
    row_kernel(const FrcnnBoxSamples s, Delta<compute_t<T>> stds, double* __restrict__ of_row) {
  using C = compute_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32, count = static_cast<int>(s.classes) + 1;
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / 32;
  if (row >= s.rows) return;
  const T* const outputs = static_cast<const T*>(s.outputs) + row * row_length(s);
  const SampledBox box = sampled_box(s, row);
  double of_class = 0, of_box = 0, right = 0;
  if (box.used) {  // the same for the whole warp
    const Softmax<C> softmax = softmax_of(outputs, count, lane);
    const C own = widen(outputs[box.label]);
    bool highest = true;
    for (int i = lane; i < count; i += 32)
      highest = highest && (i < box.label ? widen(outputs[i]) < own : widen(outputs[i]) <= own);
    right = __ballot_sync(kFullWarp, highest) == kFullWarp ? 1 : 0;
    of_class = std::log(softmax.sum) - (own - softmax.largest);
    if (box.positive) of_box = box_loss<C>(s, row, delta_at(outputs + box.delta), stds);
  }
  if (lane < 3) of_row[3 * row + lane] = lane == 0 ? of_class : (lane == 1 ? of_box : right);
}

template <typename C>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const FrcnnBoxSamples s, const double* __restrict__ of_row, C* __restrict__ of_class,
               C* __restrict__ of_box, C* __restrict__ accuracy) {
  FRCNN_SHARED(of_warp, double[3][kThreads / 32]);
  double sums[3] = {0, 0, 0};
  for (int64_t row = threadIdx.x; row < s.rows; row += kThreads) {
    for (int v = 0; v < 3; ++v) sums[v] += of_row[3 * row + v];
  }
  for (int v = 0; v < 3; ++v) sums[v] = block_sum<kThreads>(sums[v], of_warp[v]);
  if (threadIdx.x != 0) return;
  const double count = static_cast<double>(used_rows(s));
  *of_class = static_cast<C>(sums[0] / count);
  *of_box = static_cast<C>(s.weight * sums[1] / count);
  *accuracy = static_cast<C>(100 * sums[2] / count);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(const FrcnnBoxSamples s, Delta<compute_t<T>> stds,
                    const compute_t<T>* __restrict__ by_class, const compute_t<T>* __restrict__ by_box,
                    T* __restrict__ grad) {
  using C = compute_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32, length = static_cast<int>(row_length(s));
  const int count = static_cast<int>(s.classes) + 1;
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / 32;
  if (row >= s.rows) return;
  const T* const outputs = static_cast<const T*>(s.outputs) + row * length;
  T* const out = grad + row * length;
  const SampledBox box = sampled_box(s, row);
  const C samples = static_cast<C>(used_rows(s)), of_class = *by_class / samples;
  Softmax<C> softmax{C(0), C(1)};
  Delta<C> d{C(0), C(0), C(0), C(0)};
  if (box.used) softmax = softmax_of(outputs, count, lane);
  if (box.positive)
    d = box_loss_grad<C>(s, row, delta_at(outputs + box.delta), stds,
                         static_cast<C>(s.weight) * *by_box / samples);
  for (int i = lane; i < length; i += 32) {
    C g = C(0);
    if (box.used && i < count) {
      const C probability = std::exp(widen(outputs[i]) - softmax.largest) / softmax.sum;
      g = of_class * (probability - (i == box.label ? C(1) : C(0)));
    } else if (box.positive && i >= box.delta && i < box.delta + 4) {
      const int which = i - static_cast<int>(box.delta);
      g = which == 0 ? d.dx : (which == 1 ? d.dy : (which == 2 ? d.dw : d.dh));
    }
    out[i] = narrow<T>(g);
  }
}

}  // namespace
}  // namespace frcnn

extern "C" {

int64_t frcnn_cuda_box_head_loss_workspace(const FrcnnBoxSamples* samples) {
  return samples->rows * 3 * static_cast<int64_t>(sizeof(double));
}

int frcnn_cuda_box_head_loss(int64_t type, const FrcnnBoxSamples* samples, void* workspace, void* of_class,
                             void* of_box, void* accuracy, cudaStream_t stream) {
  using namespace frcnn;
  dim3 blocks;
  if (!blocks_for(samples->rows, kRows, &blocks)) return cudaErrorInvalidValue;
  return for_feature_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using C = compute_t<T>;
    double* const of_row = static_cast<double*>(workspace);
    if (samples->rows > 0) {
      const cudaError_t error = launch(row_kernel<T>, blocks, dim3(kThreads), 0, stream, *samples,
                                       stds_of<C>(samples->stds), of_row);
      if (error != cudaSuccess) return error;
    }
    return launch(sum_kernel<C>, dim3(1), dim3(kThreads), 0, stream, *samples,
                  static_cast<const double*>(of_row), static_cast<C*>(of_class), static_cast<C*>(of_box),
                  static_cast<C*>(accuracy));
  });
}

int frcnn_cuda_box_head_loss_backward(int64_t type, const FrcnnBoxSamples* samples, const void* by_class,
                                      const void* by_box, void* grad, cudaStream_t stream) {
  using namespace frcnn;
  dim3 blocks;
  if (!blocks_for(samples->rows, kRows, &blocks)) return cudaErrorInvalidValue;
  if (samples->rows == 0) return cudaSuccess;
  return for_feature_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using C = compute_t<T>;
    return launch(gradient_kernel<T>, blocks, dim3(kThreads), 0, stream, *samples, stds_of<C>(samples->stds),
                  static_cast<const C*>(by_class), static_cast<const C*>(by_box), static_cast<T*>(grad));
  });
}
}
