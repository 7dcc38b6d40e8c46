// IoU losses of aligned pairs in one pass: decode, loss, weight and reduction; one more pass for the
// gradient. Sums are taken in double over blocks of fixed size, so they do not depend on the number of
// threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../box.h"
#include "../checks.h"

namespace frcnn {
namespace {

constexpr int64_t kBlock = 1024;

at::Tensor contiguous_or_none(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->contiguous() : at::Tensor();
}

// The pairs as the kernels read them; null where an argument is None.
template <typename T>
struct Pairs {
  const T *pred, *target, *weight, *boxes;
  Delta<T> stds;

  Delta<T> delta(int64_t i) const { return {pred[4 * i], pred[4 * i + 1], pred[4 * i + 2], pred[4 * i + 3]}; }
  Box<T> box(int64_t i) const {
    return boxes ? decode(load_box(boxes + 4 * i), delta(i), stds) : load_box(pred + 4 * i);
  }
  T factor(int64_t i) const { return weight ? weight[i] : T(1); }
};

template <typename T>
Pairs<T> pairs_of(const at::Tensor& pred, const at::Tensor& target, const at::Tensor& weight,
                  const at::Tensor& boxes, at::ArrayRef<double> stds) {
  return {
      pred.const_data_ptr<T>(),
      target.const_data_ptr<T>(),
      weight.defined() ? weight.const_data_ptr<T>() : nullptr,
      boxes.defined() ? boxes.const_data_ptr<T>() : nullptr,
      {static_cast<T>(stds[0]), static_cast<T>(stds[1]), static_cast<T>(stds[2]), static_cast<T>(stds[3])}};
}

at::Tensor iou_loss_forward(const at::Tensor& pred, const at::Tensor& target,
                            const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& boxes,
                            at::ArrayRef<double> stds, c10::string_view mode, double eps, double beta,
                            c10::string_view reduction) {
  check_iou_loss(pred, target, weight, boxes, stds, mode, eps, beta, reduction);
  const IouLoss kind = iou_loss_mode(mode);
  const Reduction reduce = reduction_of(reduction);
  const int64_t count = pred.size(0), values = kind == IouLoss::kBounded ? 4 : 1;
  const at::Tensor pred_rows = pred.contiguous(), target_rows = target.contiguous();
  const at::Tensor weights = contiguous_or_none(weight), box_rows = contiguous_or_none(boxes);

  at::Tensor loss;
  if (reduce == Reduction::kNone) {
    loss = values == 4 ? at::empty({count, 4}, pred.options()) : at::empty({count}, pred.options());
  } else {
    loss = at::empty({}, pred.options());
  }
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> sums(blocks, 0.0);
  AT_DISPATCH_FLOATING_TYPES(pred.scalar_type(), "iou_loss", [&] {
    const auto pairs = pairs_of<scalar_t>(pred_rows, target_rows, weights, box_rows, stds);
    scalar_t* out = loss.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kBlock; i < std::min(end * kBlock, count); ++i) {
        const auto predicted = pairs.box(i), truth = load_box(pairs.target + 4 * i);
        scalar_t of_pair[4];
        if (kind == IouLoss::kBounded) {
          const auto bounded =
              bounded_iou_loss(predicted, truth, static_cast<scalar_t>(beta), static_cast<scalar_t>(eps));
          of_pair[0] = bounded.dx, of_pair[1] = bounded.dy, of_pair[2] = bounded.dw, of_pair[3] = bounded.dh;
        } else {
          of_pair[0] = iou_loss(kind, predicted, truth, static_cast<scalar_t>(eps)).value;
        }
        for (int64_t v = 0; v < values; ++v) {
          const scalar_t weighted = of_pair[v] * pairs.factor(i);
          if (reduce == Reduction::kNone) {
            out[i * values + v] = weighted;
          } else {
            sums[i / kBlock] += weighted;
          }
        }
      }
    });
    if (reduce != Reduction::kNone) {
      double sum = 0;
      for (const double of_block : sums) sum += of_block;
      const int64_t divisor = reduce == Reduction::kMean ? std::max<int64_t>(count * values, 1) : 1;
      *out = static_cast<scalar_t>(sum / static_cast<double>(divisor));
    }
  });
  return loss;
}

at::Tensor iou_loss_backward(const at::Tensor& grad, const at::Tensor& pred, const at::Tensor& target,
                             const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& boxes,
                             at::ArrayRef<double> stds, c10::string_view mode, double eps, double beta,
                             c10::string_view reduction) {
  check_iou_loss_backward(grad, pred, target, weight, boxes, stds, mode, eps, beta, reduction);
  const IouLoss kind = iou_loss_mode(mode);
  const Reduction reduce = reduction_of(reduction);
  const int64_t count = pred.size(0), values = kind == IouLoss::kBounded ? 4 : 1;
  const at::Tensor grad_rows = grad.contiguous(), pred_rows = pred.contiguous(),
                   target_rows = target.contiguous();
  const at::Tensor weights = contiguous_or_none(weight), box_rows = contiguous_or_none(boxes);
  at::Tensor result = at::empty_like(pred_rows);
  AT_DISPATCH_FLOATING_TYPES(pred.scalar_type(), "iou_loss_backward", [&] {
    const auto pairs = pairs_of<scalar_t>(pred_rows, target_rows, weights, box_rows, stds);
    const scalar_t* upstream = grad_rows.const_data_ptr<scalar_t>();
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    const scalar_t share = reduce == Reduction::kMean
                               ? scalar_t(1) / static_cast<scalar_t>(std::max<int64_t>(count * values, 1))
                               : scalar_t(1);
    at::parallel_for(0, count, kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto predicted = pairs.box(i), truth = load_box(pairs.target + 4 * i);
        const scalar_t factor = pairs.factor(i) * share;
        const auto received = [&](int64_t v) {
          return upstream[reduce == Reduction::kNone ? i * values + v : 0] * factor;
        };
        Box<scalar_t> by_box;
        if (kind == IouLoss::kBounded) {
          by_box =
              bounded_iou_loss_grad(predicted, truth, static_cast<scalar_t>(beta), static_cast<scalar_t>(eps),
                                    {received(0), received(1), received(2), received(3)});
        } else {
          const auto unit = iou_loss(kind, predicted, truth, static_cast<scalar_t>(eps)).grad;
          by_box = detail::scale(received(0), unit);
        }
        if (pairs.boxes) {
          const auto by_delta =
              decode_grad(load_box(pairs.boxes + 4 * i), pairs.delta(i), pairs.stds, by_box);
          by_box = {by_delta.dx, by_delta.dy, by_delta.dw, by_delta.dh};
        }
        store_box(out + 4 * i, by_box);
      }
    });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CPU, m) {
  m.impl("iou_loss", &iou_loss_forward);
  m.impl("iou_loss_backward", &iou_loss_backward);
}

}  // namespace frcnn
