// Norms in evaluation mode, folded into the convolutions before them: a launch for kLayers layers, forward
// and backward. A warp takes a filter; its threads stride over the filter's weights.
//
// Bound by bytes: R-50's 23.5 million weights are read and written once forward (188 MB in float32, a modeled
// 56 us at 3.35 TB/s) and, backward, two are read and one is written. What it saves is the chain of
// operators, six launches per layer forward and as many backward. The dot product of a filter with its
// gradient is taken in float64 over a fixed tree: the same bits every time.
// Nothing was measured on a GPU.
#include <cmath>

#include "dtypes.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256, kFilters = kThreads / 32;  // of a block
constexpr int kLayers = 32;  // of a launch: their table is a kernel parameter, of which there are 4 KB

template <typename T, typename Out>
struct Table {
  const T *weight[kLayers], *gain[kLayers], *shift[kLayers], *mean[kLayers], *variance[kLayers];
  Out *to_weight[kLayers], *to_bias[kLayers];
  int first[kLayers + 1];  // of the layers' filters among all of this launch
  int row[kLayers];
};
template <typename T, typename Grad>
struct BackwardTable {
  const T *weight[kLayers], *gain[kLayers], *mean[kLayers], *variance[kLayers];
  const Grad *grad_weight[kLayers], *grad_bias[kLayers];
  T *by_weight[kLayers], *by_gain[kLayers], *by_shift[kLayers];
  int first[kLayers + 1];
  int row[kLayers];
};
static_assert(sizeof(Table<float, float>) <= 4000 && sizeof(BackwardTable<float, float>) <= 4000);

// The filter of a warp among all of the launch, and its layer.
__device__ __forceinline__ int64_t filter_of_warp() {
  return int64_t{blockIdx.x} * kFilters + threadIdx.x / 32;
}
__device__ __forceinline__ int layer_of(const int* first, int64_t filter) {
  int l = 0;
  while (filter >= first[l + 1]) ++l;
  return l;
}

template <typename T, typename Out>
__global__ void __launch_bounds__(kThreads) fold_kernel(const __grid_constant__ Table<T, Out> table, T eps) {
  const int64_t filter = filter_of_warp();
  if (filter >= table.first[kLayers]) return;
  const int l = layer_of(table.first, filter), k = static_cast<int>(filter) - table.first[l];
  const int row = table.row[l], lane = static_cast<int>(threadIdx.x) % 32;
  const T scale = table.gain[l][k] / std::sqrt(table.variance[l][k] + eps);
  if (lane == 0) table.to_bias[l][k] = narrow<Out>(table.shift[l][k] - table.mean[l][k] * scale);
  const T* const from = table.weight[l] + int64_t{k} * row;
  Out* const to = table.to_weight[l] + int64_t{k} * row;
  for (int i = lane; i < row; i += 32) to[i] = narrow<Out>(from[i] * scale);
}

template <typename T, typename Grad>
__global__ void __launch_bounds__(kThreads)
    fold_backward_kernel(const __grid_constant__ BackwardTable<T, Grad> table, T eps) {
  const int64_t filter = filter_of_warp();
  if (filter >= table.first[kLayers]) return;
  const int l = layer_of(table.first, filter), k = static_cast<int>(filter) - table.first[l];
  const int row = table.row[l], lane = static_cast<int>(threadIdx.x) % 32;
  const T deviation = std::sqrt(table.variance[l][k] + eps), scale = table.gain[l][k] / deviation;
  const T* const weight = table.weight[l] + int64_t{k} * row;
  const Grad* const grad = table.grad_weight[l] + int64_t{k} * row;
  T* const by_weight = table.by_weight[l] + int64_t{k} * row;
  double by_scale = 0;
  for (int i = lane; i < row; i += 32) {
    const T g = widen(grad[i]);
    by_scale += static_cast<double>(g * weight[i]);
    by_weight[i] = g * scale;
  }
  for (int step = 16; step > 0; step /= 2) by_scale += __shfl_down_sync(kFullWarp, by_scale, step);
  if (lane != 0) return;
  const T own = widen(table.grad_bias[l][k]);
  table.by_shift[l][k] = own;
  table.by_gain[l][k] = (static_cast<T>(by_scale) - table.mean[l][k] * own) / deviation;
}

// The types of the parameters and of what is folded.
template <typename F>
cudaError_t for_types(int64_t type, int64_t out_type, F&& f) {
  if (type == kFrcnnDouble) return f(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
  return for_half_or_float(out_type, [&](auto* out) { return f(static_cast<float*>(nullptr), out); });
}

unsigned blocks_of(int64_t filters) { return static_cast<unsigned>(div_up<int64_t>(filters, kFilters)); }

// Sizes of up to kLayers layers in a table, and how many filters they have; -1 if they are too many.
template <typename AnyTable>
int64_t fill_sizes(const FrcnnNorm* norms, int64_t layers, AnyTable* table) {
  int64_t filters = 0;
  for (int64_t l = 0; l < layers; ++l) {
    table->first[l] = static_cast<int>(filters);
    table->row[l] = static_cast<int>(norms[l].row);
    filters += norms[l].filters;
    if (filters > INT32_MAX || norms[l].row > INT32_MAX) return -1;
  }
  for (int64_t l = layers; l <= kLayers; ++l) table->first[l] = static_cast<int>(filters);
  return filters;
}

}  // namespace
}  // namespace frcnn

extern "C" {

int frcnn_cuda_fold_norms(int64_t type, int64_t out_type, const FrcnnNorm* norms, int64_t layers, double eps,
                          void* const* weights, void* const* biases, cudaStream_t stream) {
  using namespace frcnn;
  return for_types(type, out_type, [&](auto* tag, auto* out) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using Out = std::remove_pointer_t<decltype(out)>;
    for (int64_t begin = 0; begin < layers; begin += kLayers) {
      const int64_t count = layers - begin < kLayers ? layers - begin : kLayers;
      Table<T, Out> table{};
      for (int64_t l = 0; l < count; ++l) {
        const FrcnnNorm& norm = norms[begin + l];
        table.weight[l] = static_cast<const T*>(norm.weight);
        table.gain[l] = static_cast<const T*>(norm.gain);
        table.shift[l] = static_cast<const T*>(norm.shift);
        table.mean[l] = static_cast<const T*>(norm.mean);
        table.variance[l] = static_cast<const T*>(norm.variance);
        table.to_weight[l] = static_cast<Out*>(weights[begin + l]);
        table.to_bias[l] = static_cast<Out*>(biases[begin + l]);
      }
      const int64_t filters = fill_sizes(norms + begin, count, &table);
      if (filters < 0) return cudaErrorInvalidValue;
      if (filters == 0) continue;
      const cudaError_t error = launch(fold_kernel<T, Out>, dim3(blocks_of(filters)), dim3(kThreads), 0,
                                       stream, table, static_cast<T>(eps));
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

int frcnn_cuda_fold_norms_backward(int64_t type, int64_t grad_type, const FrcnnNorm* norms, int64_t layers,
                                   double eps, const void* const* grad_weights,
                                   const void* const* grad_biases, void* const* by_weight,
                                   void* const* by_gain, void* const* by_shift, cudaStream_t stream) {
  using namespace frcnn;
  return for_types(type, grad_type, [&](auto* tag, auto* of_grad) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using Grad = std::remove_pointer_t<decltype(of_grad)>;
    for (int64_t begin = 0; begin < layers; begin += kLayers) {
      const int64_t count = layers - begin < kLayers ? layers - begin : kLayers;
      BackwardTable<T, Grad> table{};
      for (int64_t l = 0; l < count; ++l) {
        const FrcnnNorm& norm = norms[begin + l];
        table.weight[l] = static_cast<const T*>(norm.weight);
        table.gain[l] = static_cast<const T*>(norm.gain);
        table.mean[l] = static_cast<const T*>(norm.mean);
        table.variance[l] = static_cast<const T*>(norm.variance);
        table.grad_weight[l] = static_cast<const Grad*>(grad_weights[begin + l]);
        table.grad_bias[l] = static_cast<const Grad*>(grad_biases[begin + l]);
        table.by_weight[l] = static_cast<T*>(by_weight[begin + l]);
        table.by_gain[l] = static_cast<T*>(by_gain[begin + l]);
        table.by_shift[l] = static_cast<T*>(by_shift[begin + l]);
      }
      const int64_t filters = fill_sizes(norms + begin, count, &table);
      if (filters < 0) return cudaErrorInvalidValue;
      if (filters == 0) continue;
      const cudaError_t error = launch(fold_backward_kernel<T, Grad>, dim3(blocks_of(filters)),
                                       dim3(kThreads), 0, stream, table, static_cast<T>(eps));
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}
}
