#include <algorithm>

#include "binding.h"

namespace frcnn {
namespace {

// Whether two tensors of one shape keep their numbers in the same order.
bool same_order(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// A weight as rows of numbers, one for each filter: as it lies in memory where it lies so.
Tensor as_rows(const Tensor& weight) {
  const bool in_rows = weight.is_contiguous() || (weight.dim() == 4 && is_channels_last(weight));
  return in_rows ? weight : contiguous(weight);
}

Tensor in_order_of(const Tensor& weight, const Tensor& tensor) {
  if (same_order(weight, tensor)) return tensor;
  Tensor ordered = empty_like(weight, tensor.scalar_type());
  return torch::stable::copy_(ordered, tensor);
}

// The arguments of both directions, checked, and as the kernels read them.
struct Layers {
  Layers(const char* op, const Tensors& weights, const Tensors& gains, const Tensors& shifts,
         const Tensors& means, const Tensors& variances, double eps) {
    FRCNN_CHECK(!weights.empty(), op, ": weights is empty, expected at least one layer");
    const std::pair<const char*, const Tensors&> vectors[] = {
        {"gains", gains}, {"shifts", shifts}, {"means", means}, {"variances", variances}};
    for (const auto& [name, list] : vectors) {
      FRCNN_CHECK(list.size() == weights.size(), op, ": there are ", list.size(), " ", name, " and ",
                  weights.size(), " weights, expected one of each per layer");
    }
    expect_positive(op, "eps", eps);
    const Argument first{op, "weights", weights[0]};
    expect_float(first);
    for (size_t l = 0; l < weights.size(); ++l) {
      const Argument weight{op, "weights", weights[l]};
      FRCNN_CHECK(weights[l].dim() >= 1, op, ": weights has shape ", weights[l].sizes(),
                  ", expected [K, ...], the filters first");
      expect_like(weight, first);
      FRCNN_CHECK(weights[l].numel() <= kMostAlongOne, op, ": weights hold ", weights[l].numel(),
                  " numbers in a layer, expected at most ", kMostAlongOne);
      const int64_t filters = weights[l].size(0);
      rows.push_back(as_rows(weights[l]));
      FrcnnNorm norm{rows.back().const_data_ptr(),
                     nullptr,
                     nullptr,
                     nullptr,
                     nullptr,
                     filters,
                     filters == 0 ? 0 : weights[l].numel() / filters};
      const void** places[] = {&norm.gain, &norm.shift, &norm.mean, &norm.variance};
      for (size_t v = 0; v < 4; ++v) {
        const Argument vector{op, vectors[v].first, vectors[v].second[l]};
        expect_shape(vector, {filters}, "[K], a number for each filter of its layer");
        expect_like(vector, first);
        kept.push_back(contiguous(vector.tensor));
        *places[v] = kept.back().const_data_ptr();
      }
      norms.push_back(norm);
    }
  }

  Tensors rows, kept;
  std::vector<FrcnnNorm> norms;
};

std::vector<void*> pointers_of(const Tensors& tensors) {
  std::vector<void*> pointers;
  for (const Tensor& tensor : tensors) pointers.push_back(tensor.mutable_data_ptr());
  return pointers;
}

Tensors fold_norms(const Tensors& weights, const Tensors& gains, const Tensors& shifts, const Tensors& means,
                   const Tensors& variances, double eps, ScalarType dtype) {
  const char* op = "fold_norms";
  const Layers layers(op, weights, gains, shifts, means, variances, eps);
  const bool wide = weights[0].scalar_type() == ScalarType::Double;
  FRCNN_CHECK(wide ? dtype == ScalarType::Double
                   : dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
              op, ": dtype is ", dtype, ", expected float32, float16 or bfloat16, or float64 for float64");
  const Device device = weights[0].device();
  const OnDevice guard(device);
  Tensors folded, biases;
  for (const Tensor& rows : layers.rows) {
    folded.push_back(empty_like(rows, dtype));
    biases.push_back(empty({rows.size(0)}, dtype, device));
  }
  const auto weight_pointers = pointers_of(folded), bias_pointers = pointers_of(biases);
  FRCNN_RUN(fold_norms, device, type_of(weights[0]), type_of(folded[0]), layers.norms.data(),
            static_cast<int64_t>(weights.size()), eps, weight_pointers.data(), bias_pointers.data());
  folded.insert(folded.end(), biases.begin(), biases.end());
  return folded;
}

Tensors fold_norms_backward(const Tensors& grads, const Tensors& weights, const Tensors& gains,
                            const Tensors& shifts, const Tensors& means, const Tensors& variances,
                            double eps) {
  const char* op = "fold_norms_backward";
  const Layers layers(op, weights, gains, shifts, means, variances, eps);
  const size_t count = weights.size();
  FRCNN_CHECK(grads.size() == 2 * count, op, ": there are ", grads.size(), " grads, expected ", 2 * count,
              ", of the weights, then of the biases");
  const Device device = weights[0].device();
  const OnDevice guard(device);
  const Argument first{op, "grads", grads[0]};
  if (weights[0].scalar_type() == ScalarType::Double) {
    expect_dtype(first, {ScalarType::Double}, "float64 as the weights");
  } else {
    expect_dtype(first, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16},
                 "float32, float16 or bfloat16");
  }
  Tensors kept, results[3];
  std::vector<const void*> grad_pointers;
  for (size_t i = 0; i < grads.size(); ++i) {
    const Argument grad{op, "grads", grads[i]};
    const Tensor& rows = layers.rows[i % count];
    const Ints shape = i < count ? rows.sizes() : rows.sizes().slice(0, 1);
    FRCNN_CHECK(grads[i].sizes().equals(shape), op, ": grads has shape ", grads[i].sizes(), ", expected ",
                shape, ", as the ", i < count ? "weight" : "bias");
    expect_like(grad, first);
    expect_same_device(grad, {op, "weights", weights[0]});
    kept.push_back(i < count ? in_order_of(rows, grads[i]) : contiguous(grads[i]));
    grad_pointers.push_back(kept.back().const_data_ptr());
  }
  for (const Tensor& rows : layers.rows) {
    results[0].push_back(empty_like(rows));
    for (const int vector : {1, 2}) results[vector].push_back(empty({rows.size(0)}, rows));
  }
  const auto by_weight = pointers_of(results[0]), by_gain = pointers_of(results[1]),
             by_shift = pointers_of(results[2]);
  FRCNN_RUN(fold_norms_backward, device, type_of(weights[0]), type_of(grads[0]), layers.norms.data(),
            static_cast<int64_t>(count), eps, grad_pointers.data(), grad_pointers.data() + count,
            by_weight.data(), by_gain.data(), by_shift.data());
  for (const int vector : {1, 2})
    results[0].insert(results[0].end(), results[vector].begin(), results[vector].end());
  return results[0];
}

}  // namespace

// L of weights [K, ...], gains, shifts, means, variances [K], float32 or float64 -> L weights in the layout
// of `weights`, then L biases [K], of dtype
FRCNN_OPERATOR(
    fold_norms,
    "fold_norms(Tensor[] weights, Tensor[] gains, Tensor[] shifts, Tensor[] means, Tensor[] variances, "
    "float eps, ScalarType dtype) -> Tensor[]")
// grads: of L weights, then of L biases -> of L weights, L gains, L shifts
FRCNN_OPERATOR(fold_norms_backward,
               "fold_norms_backward(Tensor[] grads, Tensor[] weights, Tensor[] gains, Tensor[] shifts, "
               "Tensor[] means, Tensor[] variances, float eps) -> Tensor[]")

}  // namespace frcnn
