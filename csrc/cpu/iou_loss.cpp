// IoU losses of aligned pairs in one pass: decode, loss, weight and reduction; one more pass for the
// gradient. Sums are taken in double over blocks of fixed size, so they do not depend on the number of
// threads.
#include <algorithm>

#include "parallel.h"
#include "types.h"

namespace frcnn {
namespace {

constexpr int64_t kBlock = 1024;

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }
int64_t values_of(IouLoss mode) { return mode == IouLoss::kBounded ? 4 : 1; }

// The pairs; weight and boxes may be null.
template <typename T>
struct Pairs {
  const T *pred, *target, *weight, *boxes;
  Delta<T> stds;

  Delta<T> delta(int64_t i) const { return load_delta(pred + 4 * i); }
  Box<T> box(int64_t i) const {
    return boxes ? decode(load_box(boxes + 4 * i), delta(i), stds) : load_box(pred + 4 * i);
  }
  T factor(int64_t i) const { return weight ? weight[i] : T(1); }
};

template <typename T>
Pairs<T> pairs_of(const void* pred, const void* target, const void* weight, const void* boxes,
                  const double* stds) {
  return {static_cast<const T*>(pred), static_cast<const T*>(target), static_cast<const T*>(weight),
          static_cast<const T*>(boxes), stds_of<T>(stds)};
}

}  // namespace
}  // namespace frcnn

using namespace frcnn;

int64_t frcnn_cpu_iou_loss_workspace(int64_t n) {
  return blocks_of(n) * static_cast<int64_t>(sizeof(double));
}

void frcnn_cpu_iou_loss(int64_t type, const void* pred, const void* target, const void* weight,
                        const void* boxes, const double* stds, int64_t n, int64_t mode, double eps,
                        double beta, int64_t reduction, void* workspace, void* out) {
  const auto kind = static_cast<IouLoss>(mode);
  const int64_t values = values_of(kind), blocks = blocks_of(n);
  double* sums = static_cast<double*>(workspace);
  std::fill_n(sums, blocks, 0.0);
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    const auto pairs = pairs_of<T>(pred, target, weight, boxes, stds);
    T* loss = static_cast<T*>(out);
    parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kBlock; i < std::min(end * kBlock, n); ++i) {
        const auto predicted = pairs.box(i), truth = load_box(pairs.target + 4 * i);
        T of_pair[4];
        if (kind == IouLoss::kBounded) {
          store_delta(of_pair, bounded_iou_loss(predicted, truth, static_cast<T>(beta), static_cast<T>(eps)));
        } else {
          of_pair[0] = iou_loss(kind, predicted, truth, static_cast<T>(eps)).value;
        }
        for (int64_t v = 0; v < values; ++v) {
          const T weighted = of_pair[v] * pairs.factor(i);
          if (reduction == kFrcnnNone) {
            loss[i * values + v] = weighted;
          } else {
            sums[i / kBlock] += weighted;
          }
        }
      }
    });
    if (reduction == kFrcnnNone) return;
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += sums[block];
    const int64_t divisor = reduction == kFrcnnMean ? std::max<int64_t>(n * values, 1) : 1;
    *loss = static_cast<T>(sum / static_cast<double>(divisor));
  });
}

void frcnn_cpu_iou_loss_backward(int64_t type, const void* grad, const void* pred, const void* target,
                                 const void* weight, const void* boxes, const double* stds, int64_t n,
                                 int64_t mode, double eps, double beta, int64_t reduction, void* grad_pred) {
  const auto kind = static_cast<IouLoss>(mode);
  const int64_t values = values_of(kind);
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    const auto pairs = pairs_of<T>(pred, target, weight, boxes, stds);
    const T* upstream = static_cast<const T*>(grad);
    const T share = reduction == kFrcnnMean ? T(1) / static_cast<T>(std::max<int64_t>(n * values, 1)) : T(1);
    parallel_for(n, kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto predicted = pairs.box(i), truth = load_box(pairs.target + 4 * i);
        const T factor = pairs.factor(i) * share;
        const auto received = [&](int64_t v) {
          return upstream[reduction == kFrcnnNone ? i * values + v : 0] * factor;
        };
        Box<T> by_box;
        if (kind == IouLoss::kBounded) {
          by_box = bounded_iou_loss_grad(predicted, truth, static_cast<T>(beta), static_cast<T>(eps),
                                         {received(0), received(1), received(2), received(3)});
        } else {
          by_box = detail::scale(received(0), iou_loss(kind, predicted, truth, static_cast<T>(eps)).grad);
        }
        T* out = static_cast<T*>(grad_pred) + 4 * i;
        if (pairs.boxes) {
          store_delta(out, decode_grad(load_box(pairs.boxes + 4 * i), pairs.delta(i), pairs.stds, by_box));
        } else {
          store_box(out, by_box);
        }
      }
    });
  });
}
