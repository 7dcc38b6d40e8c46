// Max-IoU assignment in two streaming launches; no box x gt matrix, workspace one number per gt.
//
// Pass 1: a thread owns a box and meets the image's gts in shared memory, tile by tile; it decides the box's
// gt by the thresholds, and warps raise each gt's best IoU by an integer atomicMax on the float's bits, whose
// result does not depend on the order. Pass 2: boxes that tie with a gt's best are handed to it, the last
// such gt first found by going backwards. A tie is bitwise equality, which holds because both passes inline
// the same iou().
//
// Bound by the issue of instructions: a warp meets every gt, if only to skip it. Anchors are ordered by
// position, so most gts miss the bounding box of a warp's 32 anchors and cost a load and four compares; pass
// 2 skips boxes whose own best IoU is below every gt's best, which is nearly all of them. For the
// anchors of two images of 800 x 1344 (docs/performance.md) a modeled 56 + 11 us with 100 gts each and 9 + 3
// us with 10; the bytes alone take a modeled 5 + 3 us. Nothing was measured on a GPU.
#include "../box.h"
#include "dtypes.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256, kTile = 256;

// Unsigned integers that order like the non-negative numbers whose bits they are.
template <typename T>
struct Ordered;
template <>
struct Ordered<float> {
  using type = unsigned;
  static __device__ __forceinline__ type of(float v) { return __float_as_uint(v); }
};
template <>
struct Ordered<double> {
  using type = unsigned long long;
  static __device__ __forceinline__ type of(double v) { return static_cast<type>(__double_as_longlong(v)); }
};

template <typename V>
__device__ __forceinline__ V warp_max(V v) {
  for (int step = 16; step > 0; step /= 2) v = max_of(v, __shfl_xor_sync(kFullWarp, v, step));
  return v;
}
__device__ __forceinline__ unsigned warp_max(unsigned v) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kFullWarp, v);
#else
  return warp_max<unsigned>(v);
#endif
}
template <typename T>
__device__ __forceinline__ T warp_min(T v) {
  for (int step = 16; step > 0; step /= 2) v = min_of(v, __shfl_xor_sync(kFullWarp, v, step));
  return v;
}

template <typename T>
struct Problem {
  const T* boxes;
  int64_t box_batch_stride, n;
  const T* gts;
  const int64_t* gt_counts;
  int64_t g;
  const T* ignore;
  const int64_t* ignore_counts;
  int64_t i;
  T pos_iou, neg_iou, min_pos_iou, ignore_iof;
};

__device__ __forceinline__ int64_t count_of(const int64_t* counts, int64_t image, int64_t rows) {
  const int64_t count = counts[image];
  return count < 0 ? 0 : (count < rows ? count : rows);
}

template <typename T>
__device__ __forceinline__ bool apart(const Box<T>& a, const Box<T>& b) {
  return !(a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2);
}

// The smallest box around those of a warp. A NaN coordinate leaves it as it is.
template <typename T>
__device__ __forceinline__ Box<T> warp_bounds(bool present, const Box<T>& box) {
  const T huge = static_cast<T>(INFINITY);
  Box<T> bounds{huge, huge, -huge, -huge};
  if (present) {
    bounds = {min_of(box.x1, huge), min_of(box.y1, huge), max_of(box.x2, -huge), max_of(box.y2, -huge)};
  }
  return {warp_min(bounds.x1), warp_min(bounds.y1), warp_max(bounds.x2), warp_max(bounds.y2)};
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    best_kernel(Problem<T> p, typename Ordered<T>::type* __restrict__ gt_best, int64_t* __restrict__ gt_index,
                T* __restrict__ max_iou) {
  using Bits = typename Ordered<T>::type;
  FRCNN_SHARED(gts, Box<T>[kTile]);
  FRCNN_SHARED(best_of, Bits[kTile]);
  const int t = static_cast<int>(threadIdx.x);
  const int64_t image = blockIdx.y, own = int64_t{blockIdx.x} * kThreads + t;
  const int64_t count = count_of(p.gt_counts, image, p.g);
  const bool present = own < p.n;
  Box<T> box{T(0), T(0), T(0), T(0)};
  if (present) box = load_box(p.boxes + image * p.box_batch_stride + own * 4);
  const T area = box.area();

  bool ignored = present && has_nan(box);
  if (p.ignore != nullptr && count > 0 && present) {
    const int64_t regions = count_of(p.ignore_counts, image, p.i);
    for (int64_t r = 0; r < regions && !ignored; ++r)
      ignored = iof(box, area, load_box(p.ignore + (image * p.i + r) * 4)) > p.ignore_iof;
  }
  const bool meets = present && !ignored;
  const Box<T> bounds = warp_bounds(meets, box);

  T best = T(0);
  int64_t best_gt = 0;
  for (int64_t first = 0; first < count; first += kTile) {
    const int size = static_cast<int>(count - first < kTile ? count - first : kTile);
    if (t < size) {
      gts[t] = load_box(p.gts + (image * p.g + first + t) * 4);
      best_of[t] = 0;
    }
    __syncthreads();
    for (int k = 0; k < size; ++k) {
      const Box<T> gt = gts[k];
      if (apart(bounds, gt)) continue;  // the same for the whole warp
      const T overlap = meets ? iou(box, area, gt, gt.area()) : T(0);
      if (overlap > best) {
        best = overlap;
        best_gt = first + k;
      }
      const Bits highest = warp_max(Ordered<T>::of(overlap));
      if (t % 32 == 0 && highest > 0) atomicMax(&best_of[k], highest);
    }
    __syncthreads();
    if (t < size && best_of[t] > 0) atomicMax(&gt_best[image * p.g + first + t], best_of[t]);
  }
  if (!present) return;
  const int64_t out = image * p.n + own;
  const bool positive = count > 0 && best >= p.pos_iou;
  const bool background = count == 0 || best < p.neg_iou;
  gt_index[out] = ignored ? -1 : (positive ? best_gt + 1 : (background ? 0 : -1));
  max_iou[out] = ignored ? T(-1) : best;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    claim_kernel(Problem<T> p, const T* __restrict__ gt_best, const T* __restrict__ max_iou,
                 int64_t* __restrict__ gt_index) {
  FRCNN_SHARED(gts, Box<T>[kTile]);
  FRCNN_SHARED(best_of, T[kTile]);
  FRCNN_SHARED(least_of_warp, T[kThreads / 32]);
  const int t = static_cast<int>(threadIdx.x);
  const int64_t image = blockIdx.y, own = int64_t{blockIdx.x} * kThreads + t;
  const int64_t count = count_of(p.gt_counts, image, p.g);
  const bool present = own < p.n;
  Box<T> box{T(0), T(0), T(0), T(0)};
  T most = T(-1);
  if (present) {
    box = load_box(p.boxes + image * p.box_batch_stride + own * 4);
    most = max_iou[image * p.n + own];
  }
  const T area = box.area();

  int64_t claimed = -1;
  for (int64_t end = count; end > 0; end -= kTile) {
    const int64_t first = end < kTile ? 0 : end - kTile;
    const int size = static_cast<int>(end - first);
    // The least IoU that can tie with a gt of this tile.
    T least = static_cast<T>(INFINITY);
    __syncthreads();
    if (t < size) {
      gts[t] = load_box(p.gts + (image * p.g + first + t) * 4);
      best_of[t] = gt_best[image * p.g + first + t];
      if (best_of[t] >= p.min_pos_iou) least = best_of[t];
    }
    least = warp_min(least);
    if (t % 32 == 0) least_of_warp[t / 32] = least;
    __syncthreads();
    for (int w = 0; w < kThreads / 32; ++w) least = min_of(least, least_of_warp[w]);
    if (!__syncthreads_or(claimed < 0 && most >= least)) continue;
    if (claimed >= 0 || !(most >= least)) continue;
    for (int k = size - 1; k >= 0; --k) {
      const T target = best_of[k];
      if (target < p.min_pos_iou || target > most) continue;
      if (iou(box, area, gts[k], gts[k].area()) == target) {
        claimed = first + k;
        break;
      }
    }
  }
  if (claimed >= 0) gt_index[image * p.n + own] = claimed + 1;
}

}  // namespace
}  // namespace frcnn

extern "C" int frcnn_cuda_assign_max_iou(int64_t type, const FrcnnAssignment* assignment, void* workspace,
                                         int64_t* gt_index, void* max_iou, cudaStream_t stream) {
  using namespace frcnn;
  const FrcnnAssignment& a = *assignment;
  if (a.n * a.batch == 0) return cudaSuccess;
  if (a.batch > 65535) return cudaErrorInvalidValue;
  const dim3 blocks(static_cast<unsigned>(div_up<int64_t>(a.n, kThreads)), static_cast<unsigned>(a.batch));
  return for_box_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const bool ignores = a.ignore != nullptr && a.ignore_iof > 0;
    const Problem<T> problem{static_cast<const T*>(a.boxes),
                             a.box_batch_stride,
                             a.n,
                             static_cast<const T*>(a.gts),
                             a.gt_counts,
                             a.g,
                             ignores ? static_cast<const T*>(a.ignore) : nullptr,
                             a.ignore_counts,
                             a.i,
                             static_cast<T>(a.pos_iou),
                             static_cast<T>(a.neg_iou),
                             static_cast<T>(a.min_pos_iou),
                             static_cast<T>(a.ignore_iof)};
    cudaError_t error = cudaSuccess;
    if (a.batch * a.g > 0)
      error = cudaMemsetAsync(workspace, 0, static_cast<size_t>(a.batch * a.g) * sizeof(T), stream);
    if (error != cudaSuccess) return error;
    error = launch(best_kernel<T>, blocks, dim3(kThreads), 0, stream, problem,
                   static_cast<typename Ordered<T>::type*>(workspace), gt_index, static_cast<T*>(max_iou));
    if (error != cudaSuccess || !a.match_low_quality || a.g == 0) return error;
    return launch(claim_kernel<T>, blocks, dim3(kThreads), 0, stream, problem,
                  static_cast<const T*>(workspace), static_cast<const T*>(max_iou), gt_index);
  });
}
