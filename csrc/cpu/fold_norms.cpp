// Norms in evaluation mode, folded into the convolutions before them: every layer's filters shared among
// threads, a filter at a time.
#include <cmath>
#include <vector>

#include "parallel.h"
#include "types.h"

namespace frcnn {
namespace {

// Calls f(layer, filter) for the filters of all layers.
template <typename F>
void for_filters(const FrcnnNorm* norms, int64_t layers, const F& f) {
  std::vector<int64_t> first{0};
  for (int64_t l = 0; l < layers; ++l) first.push_back(first.back() + norms[l].filters);
  parallel_for(first.back(), 16, [&](int64_t begin, int64_t end) {
    int64_t l = 0;
    for (int64_t i = begin; i < end; ++i) {
      while (i >= first[l + 1]) ++l;
      f(l, i - first[l]);
    }
  });
}

// The types of the parameters and of what is folded.
template <typename F>
void for_types(int64_t type, int64_t out_type, const F& f) {
  if (type == kFrcnnDouble) return f(double{}, double{});
  for_half_or_float(out_type, [&](auto out) { f(float{}, out); });
}

template <typename T>
T at(const void* numbers, int64_t i) {
  return static_cast<const T*>(numbers)[i];
}

template <typename T, typename Out>
void fold(const FrcnnNorm& norm, int64_t k, T eps, Out* weight, Out* bias) {
  const T scale = at<T>(norm.gain, k) / std::sqrt(at<T>(norm.variance, k) + eps);
  bias[k] = narrow<Out>(at<T>(norm.shift, k) - at<T>(norm.mean, k) * scale);
  const T* from = static_cast<const T*>(norm.weight) + k * norm.row;
  for (int64_t i = 0; i < norm.row; ++i) weight[k * norm.row + i] = narrow<Out>(from[i] * scale);
}

template <typename T, typename Grad>
void fold_backward(const FrcnnNorm& norm, int64_t k, T eps, const Grad* grad, const Grad* grad_bias,
                   T* by_weight, T* by_gain, T* by_shift) {
  const T deviation = std::sqrt(at<T>(norm.variance, k) + eps), scale = at<T>(norm.gain, k) / deviation;
  const T* weight = static_cast<const T*>(norm.weight) + k * norm.row;
  double by_scale = 0;
  for (int64_t i = 0; i < norm.row; ++i) {
    const T g = widen(grad[k * norm.row + i]);
    by_scale += static_cast<double>(g * weight[i]);
    by_weight[k * norm.row + i] = g * scale;
  }
  const T own = widen(grad_bias[k]);
  by_shift[k] = own;
  by_gain[k] = (static_cast<T>(by_scale) - at<T>(norm.mean, k) * own) / deviation;
}

}  // namespace
}  // namespace frcnn

void frcnn_cpu_fold_norms(int64_t type, int64_t out_type, const FrcnnNorm* norms, int64_t layers, double eps,
                          void* const* weights, void* const* biases) {
  using namespace frcnn;
  for_types(type, out_type, [&](auto number, auto out) {
    using T = decltype(number);
    using Out = decltype(out);
    for_filters(norms, layers, [&](int64_t l, int64_t k) {
      fold(norms[l], k, static_cast<T>(eps), static_cast<Out*>(weights[l]), static_cast<Out*>(biases[l]));
    });
  });
}

void frcnn_cpu_fold_norms_backward(int64_t type, int64_t grad_type, const FrcnnNorm* norms, int64_t layers,
                                   double eps, const void* const* grad_weights,
                                   const void* const* grad_biases, void* const* by_weight,
                                   void* const* by_gain, void* const* by_shift) {
  using namespace frcnn;
  for_types(type, grad_type, [&](auto number, auto grad) {
    using T = decltype(number);
    using Grad = decltype(grad);
    for_filters(norms, layers, [&](int64_t l, int64_t k) {
      fold_backward(norms[l], k, static_cast<T>(eps), static_cast<const Grad*>(grad_weights[l]),
                    static_cast<const Grad*>(grad_biases[l]), static_cast<T*>(by_weight[l]),
                    static_cast<T*>(by_gain[l]), static_cast<T*>(by_shift[l]));
    });
  });
}
