// The RPN's losses of sampled anchors, straight from the maps of all levels, in one launch; their gradient,
// which is zero nearly everywhere, in another (the binding clears it with one memset).
//
// Bound by latency: 256 anchors of each image read their logit, and half of them deltas and boxes, from
// places that lie anywhere. What it saves is some hundred launches. One block takes all slots; sums are taken
// in float64 over a fixed tree: the same bits every time.
// Nothing was measured on a GPU.
#include "../rpn_samples.h"
#include "block_sum.h"
#include "dtypes.h"

namespace frcnn {
namespace {

constexpr int kThreads = 512;

// FrcnnRPNSamples with its maps as a kernel parameter.
struct Samples {
  FrcnnRPNSamples s;
  FrcnnRPNMap maps[kFrcnnMostLevels];
};

template <typename T>
__device__ __forceinline__ Delta<compute_t<T>> delta_at(const SampledAnchor& a, const T* values) {
  const T* const d = values + a.delta;
  return {widen(d[0]), widen(d[a.step]), widen(d[2 * a.step]), widen(d[3 * a.step])};
}

// Called by one thread.
__device__ __forceinline__ double average_factor(const FrcnnRPNSamples& s) {
  int64_t count = 0;
  for (int64_t image = 0; image < s.batch; ++image) count += counted_samples(s, image);
  return static_cast<double>(count > 1 ? count : 1);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(const __grid_constant__ Samples samples, Delta<compute_t<T>> stds,
                compute_t<T>* __restrict__ of_class, compute_t<T>* __restrict__ of_box) {
  using C = compute_t<T>;
  FRCNN_SHARED(class_of_warp, double[kThreads / 32]);
  FRCNN_SHARED(box_of_warp, double[kThreads / 32]);
  const FrcnnRPNSamples& s = samples.s;
  double classes = 0, boxes = 0;
  for (int64_t slot = threadIdx.x; slot < s.batch * s.slots; slot += kThreads) {
    const SampledAnchor a = sampled_anchor(s, samples.maps, slot);
    if (!a.used) continue;
    const T* const values = static_cast<const T*>(samples.maps[a.level].values);
    classes += logit_loss<C>(widen(values[a.logit]), a.positive);
    if (!a.positive) continue;
    const Delta<C> delta = delta_at(a, values), goal = wanted<C>(a.box, a.target, stds);
    boxes += distance(delta.dx, goal.dx) + distance(delta.dy, goal.dy) + distance(delta.dw, goal.dw) +
             distance(delta.dh, goal.dh);
  }
  classes = block_sum<kThreads>(classes, class_of_warp);
  boxes = block_sum<kThreads>(boxes, box_of_warp);
  if (threadIdx.x != 0) return;
  const double count = average_factor(s);
  *of_class = static_cast<C>(classes / count);
  *of_box = static_cast<C>(boxes / count);
}

struct Grads {
  void* of_level[kFrcnnMostLevels];
};

// Two blocks are said aloud because ptxas would otherwise spill on sm_120 to fit a third.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_kernel(const __grid_constant__ Samples samples, Delta<compute_t<T>> stds,
                    const compute_t<T>* __restrict__ by_class, const compute_t<T>* __restrict__ by_box,
                    const __grid_constant__ Grads grads) {
  using C = compute_t<T>;
  const FrcnnRPNSamples& s = samples.s;
  const int64_t slot = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (slot >= s.batch * s.slots) return;
  const SampledAnchor a = sampled_anchor(s, samples.maps, slot);
  if (!a.used) return;
  const C count = static_cast<C>(average_factor(s));
  const T* const values = static_cast<const T*>(samples.maps[a.level].values);
  T* out = static_cast<T*>(grads.of_level[a.level]) + a.row;
  out[a.anchor] = narrow<T>(*by_class / count * logit_loss_grad<C>(widen(values[a.logit]), a.positive));
  if (!a.positive) return;
  const C of_box = *by_box / count;
  const Delta<C> delta = delta_at(a, values), goal = wanted<C>(a.box, a.target, stds);
  out += s.per_cell + 4 * a.anchor;
  out[0] = narrow<T>(of_box * sign(delta.dx, goal.dx));
  out[1] = narrow<T>(of_box * sign(delta.dy, goal.dy));
  out[2] = narrow<T>(of_box * sign(delta.dw, goal.dw));
  out[3] = narrow<T>(of_box * sign(delta.dh, goal.dh));
}

bool copied(const FrcnnRPNSamples& s, Samples* samples) {
  if (s.levels > kFrcnnMostLevels) return false;
  *samples = {};
  samples->s = s;
  for (int64_t l = 0; l < s.levels; ++l) samples->maps[l] = s.maps[l];
  return true;
}

}  // namespace
}  // namespace frcnn

extern "C" {

int frcnn_cuda_rpn_loss(int64_t type, const FrcnnRPNSamples* samples, void* of_class, void* of_box,
                        cudaStream_t stream) {
  using namespace frcnn;
  Samples parameter;
  if (!copied(*samples, &parameter)) return cudaErrorInvalidValue;
  return for_feature_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using C = compute_t<T>;
    return launch(loss_kernel<T>, dim3(1), dim3(kThreads), 0, stream, parameter, stds_of<C>(samples->stds),
                  static_cast<C*>(of_class), static_cast<C*>(of_box));
  });
}

int frcnn_cuda_rpn_loss_backward(int64_t type, const FrcnnRPNSamples* samples, const void* by_class,
                                 const void* by_box, void* const* grads, cudaStream_t stream) {
  using namespace frcnn;
  Samples parameter;
  dim3 blocks;
  if (!copied(*samples, &parameter)) return cudaErrorInvalidValue;
  if (!blocks_for(samples->batch * samples->slots, kThreads, &blocks)) return cudaErrorInvalidValue;
  if (samples->batch * samples->slots == 0) return cudaSuccess;
  Grads places{};
  for (int64_t l = 0; l < samples->levels; ++l) places.of_level[l] = grads[l];
  return for_feature_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using C = compute_t<T>;
    return launch(gradient_kernel<T>, blocks, dim3(kThreads), 0, stream, parameter, stds_of<C>(samples->stds),
                  static_cast<const C*>(by_class), static_cast<const C*>(by_box), places);
  });
}
}
