#include <cmath>
#include <string_view>
#include <utility>

#include "../box.h"
#include "binding.h"

namespace frcnn {
namespace {

IouLoss mode_of(std::string_view mode) {
  constexpr std::pair<std::string_view, IouLoss> modes[] = {
      {"log", IouLoss::kLog},        {"linear", IouLoss::kLinear}, {"square", IouLoss::kSquare},
      {"giou", IouLoss::kGiou},      {"diou", IouLoss::kDiou},     {"ciou", IouLoss::kCiou},
      {"bounded", IouLoss::kBounded}};
  for (const auto& [name, value] : modes) {
    if (name == mode) return value;
  }
  FRCNN_CHECK(false, "iou_loss: mode is \"", std::string(mode),
              "\", expected log, linear, square, giou, diou, ciou or bounded");
}

FrcnnReduction reduction_of(std::string_view reduction) {
  if (reduction == "none") return kFrcnnNone;
  if (reduction == "sum") return kFrcnnSum;
  FRCNN_CHECK(reduction == "mean", "iou_loss: reduction is \"", std::string(reduction),
              "\", expected none, sum or mean");
  return kFrcnnMean;
}

// The arguments of both directions, checked, and as the kernels read them.
struct Pairs {
  Pairs(const Tensor& pred, const Tensor& target, const OptionalTensor& weight, const OptionalTensor& boxes,
        Floats stds, std::string_view mode, double eps, double beta, std::string_view reduction)
      : n(0), mode(mode_of(mode)), reduction(reduction_of(reduction)) {
    const char* op = "iou_loss";
    const Argument prediction{op, "pred", pred}, truth{op, "target", target};
    expect_shape(prediction, {-1, 4}, "[N, 4]");
    n = pred.size(0);
    expect_shape(truth, {n, 4}, "[N, 4] with one target per prediction");
    expect_float(prediction);
    expect_like(truth, prediction);
    if (weight.has_value()) {
      const Argument factor{op, "weight", *weight};
      expect_shape(factor, {n}, "[N] with one weight per prediction");
      expect_like(factor, prediction);
    }
    if (boxes.has_value()) {
      const Argument box{op, "boxes", *boxes};
      expect_shape(box, {n, 4}, "[N, 4] with one box per prediction");
      expect_like(box, prediction);
    }
    expect_stds(op, stds);
    expect_positive(op, "eps", eps);
    if (this->mode == IouLoss::kBounded) expect_positive(op, "beta", beta);
    pred_rows = contiguous(pred);
    target_rows = contiguous(target);
    weights = contiguous_or_none(weight);
    box_rows = contiguous_or_none(boxes);
    if (this->reduction == kFrcnnNone) {
      loss_shape = this->mode == IouLoss::kBounded ? std::vector<int64_t>{n, 4} : std::vector{n};
    }
  }

  int64_t n;
  IouLoss mode;
  FrcnnReduction reduction;
  Tensor pred_rows, target_rows;
  OptionalTensor weights, box_rows;
  std::vector<int64_t> loss_shape;
};

Tensor iou_loss_forward(const Tensor& pred, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& boxes, Floats stds, std::string_view mode, double eps,
                        double beta, std::string_view reduction) {
  const Pairs p(pred, target, weight, boxes, stds, mode, eps, beta, reduction);
  const Device device = pred.device();
  const OnDevice guard(device);
  Tensor loss = empty(p.loss_shape, pred);
  const Tensor memory = workspace(FRCNN_WORKSPACE_OF(iou_loss, device, p.n), pred);
  FRCNN_RUN(iou_loss, device, type_of(pred), p.pred_rows.const_data_ptr(), p.target_rows.const_data_ptr(),
            pointer_or_null(p.weights), pointer_or_null(p.box_rows), stds.data(), p.n,
            static_cast<int64_t>(p.mode), eps, beta, p.reduction, memory.mutable_data_ptr(),
            loss.mutable_data_ptr());
  return loss;
}

Tensor iou_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& target,
                         const OptionalTensor& weight, const OptionalTensor& boxes, Floats stds,
                         std::string_view mode, double eps, double beta, std::string_view reduction) {
  const Pairs p(pred, target, weight, boxes, stds, mode, eps, beta, reduction);
  const Argument gradient{"iou_loss_backward", "grad", grad};
  FRCNN_CHECK(grad.sizes().equals(p.loss_shape), "iou_loss_backward: grad has shape ", grad.sizes(),
              ", expected ", Ints(p.loss_shape), ", as the loss");
  expect_like(gradient, {"iou_loss_backward", "pred", pred});
  const Device device = pred.device();
  const OnDevice guard(device);
  const Tensor grad_rows = contiguous(grad);
  Tensor result = empty_like(p.pred_rows);
  FRCNN_RUN(iou_loss_backward, device, type_of(pred), grad_rows.const_data_ptr(),
            p.pred_rows.const_data_ptr(), p.target_rows.const_data_ptr(), pointer_or_null(p.weights),
            pointer_or_null(p.box_rows), stds.data(), p.n, static_cast<int64_t>(p.mode), eps, beta,
            p.reduction, result.mutable_data_ptr());
  return result;
}

}  // namespace

// pred [N, 4] boxes, or deltas against `boxes` [N, 4] when given; target [N, 4] boxes;
// weight [N] or None; "mean" divides by the number of elements (weights do not count)
// mode: "log" | "linear" | "square" | "giou" | "diou" | "ciou" | "bounded"; reduction: "none" | "sum" |
// "mean"
// -> [N] ([N, 4] for "bounded"), or a scalar
FRCNN_OPERATOR(
    iou_loss_forward,
    "iou_loss(Tensor pred, Tensor target, Tensor? weight, Tensor? boxes, float[] stds, str mode, float "
    "eps, "
    "float beta, str reduction) -> Tensor")
FRCNN_OPERATOR(
    iou_loss_backward,
    "iou_loss_backward(Tensor grad, Tensor pred, Tensor target, Tensor? weight, Tensor? boxes, float[] "
    "stds, "
    "str mode, float eps, float beta, str reduction) -> Tensor")

}  // namespace frcnn
