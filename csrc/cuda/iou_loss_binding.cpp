// iou_loss and its backward for torch.
#include "binding.h"

namespace frcnn {
namespace {

at::Tensor iou_loss_forward(const at::Tensor& pred, const at::Tensor& target,
                            const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& boxes,
                            at::ArrayRef<double> stds, c10::string_view mode, double eps, double beta,
                            c10::string_view reduction) {
  check_iou_loss(pred, target, weight, boxes, stds, mode, eps, beta, reduction);
  const CUDAGuard guard(pred.device());
  const IouLoss kind = iou_loss_mode(mode);
  const Reduction reduce = reduction_of(reduction);
  const int64_t n = pred.size(0);
  const at::Tensor pred_rows = pred.contiguous(), target_rows = target.contiguous();
  const at::Tensor weights = contiguous_or_none(weight), box_rows = contiguous_or_none(boxes);
  std::vector<int64_t> shape;
  if (reduce == Reduction::kNone)
    shape = kind == IouLoss::kBounded ? std::vector<int64_t>{n, 4} : std::vector{n};
  at::Tensor loss = at::empty(shape, pred.options());
  const at::Tensor memory = workspace(frcnn_cuda_iou_loss_workspace(n), pred);
  expect_launched("iou_loss",
                  frcnn_cuda_iou_loss(type_of(pred), pred_rows.const_data_ptr(), target_rows.const_data_ptr(),
                                      pointer_or_null(weights), pointer_or_null(box_rows), stds.data(), n,
                                      static_cast<int64_t>(kind), eps, beta, static_cast<int64_t>(reduce),
                                      memory.mutable_data_ptr(), loss.mutable_data_ptr(), stream()));
  return loss;
}

at::Tensor iou_loss_backward(const at::Tensor& grad, const at::Tensor& pred, const at::Tensor& target,
                             const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& boxes,
                             at::ArrayRef<double> stds, c10::string_view mode, double eps, double beta,
                             c10::string_view reduction) {
  check_iou_loss_backward(grad, pred, target, weight, boxes, stds, mode, eps, beta, reduction);
  const CUDAGuard guard(pred.device());
  const at::Tensor grad_rows = grad.contiguous(), pred_rows = pred.contiguous(),
                   target_rows = target.contiguous();
  const at::Tensor weights = contiguous_or_none(weight), box_rows = contiguous_or_none(boxes);
  at::Tensor result = at::empty_like(pred_rows);
  expect_launched("iou_loss_backward",
                  frcnn_cuda_iou_loss_backward(
                      type_of(pred), grad_rows.const_data_ptr(), pred_rows.const_data_ptr(),
                      target_rows.const_data_ptr(), pointer_or_null(weights), pointer_or_null(box_rows),
                      stds.data(), pred.size(0), static_cast<int64_t>(iou_loss_mode(mode)), eps, beta,
                      static_cast<int64_t>(reduction_of(reduction)), result.mutable_data_ptr(), stream()));
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CUDA, m) {
  m.impl("iou_loss", &iou_loss_forward);
  m.impl("iou_loss_backward", &iou_loss_backward);
}

}  // namespace frcnn
