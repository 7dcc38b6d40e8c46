// What box_head_loss makes of one sampled box. Torch-free, for CPU and CUDA.
#pragma once

#include "rpn_samples.h"

namespace frcnn {

// Whether a row takes part, and whether it has deltas to learn. A row whose label is no class is left out.
struct SampledBox {
  bool used, positive;
  int64_t label;  // classes: background
  int64_t delta;  // where the deltas of its class begin, in the row
};

FRCNN_HD SampledBox sampled_box(const FrcnnBoxSamples& s, int64_t row) {
  const int64_t image = row / s.slots, slot = row - image * s.slots;
  const SlotCounts counts = slot_counts(s.counts, image, s.slots);
  SampledBox box{};
  box.label = s.labels[row];
  box.used = slot < counts.used() && box.label >= 0 && box.label <= s.classes;
  box.positive = box.used && slot < counts.positives && box.label < s.classes;
  box.delta = s.classes + 1 + (s.class_agnostic ? 0 : 4 * box.label);
  return box;
}

FRCNN_HD int64_t row_length(const FrcnnBoxSamples& s) {
  return s.classes + 1 + (s.class_agnostic ? 4 : 4 * s.classes);
}

// The number of samples of all images, at least one.
FRCNN_HD int64_t used_rows(const FrcnnBoxSamples& s) {
  int64_t used = 0;
  for (int64_t image = 0; image * s.slots < s.rows; ++image) {
    used += slot_counts(s.counts, image, s.slots).used();
  }
  return max_of(used, int64_t{1});
}

// Of deltas against a target: L1 on deltas, or an IoU loss of the box that they decode to.
template <typename T>
FRCNN_HD T box_loss(const FrcnnBoxSamples& s, int64_t row, const Delta<T>& delta, const Delta<T>& stds) {
  const Box<float> box = load_box(s.boxes + row * s.box_stride), target = load_box(s.targets + row * 4);
  if (s.mode == kFrcnnL1) {
    const Delta<T> goal = wanted<T>(box, target, stds);
    return distance(delta.dx, goal.dx) + distance(delta.dy, goal.dy) + distance(delta.dw, goal.dw) +
           distance(delta.dh, goal.dh);
  }
  const Box<T> found = decode(widened<T>(box), delta, stds), truth = widened<T>(target);
  const IouLoss mode = static_cast<IouLoss>(s.mode);
  if (mode != IouLoss::kBounded) return iou_loss(mode, found, truth, static_cast<T>(s.eps)).value;
  const Delta<T> v = bounded_iou_loss(found, truth, static_cast<T>(s.beta), static_cast<T>(s.eps));
  return v.dx + v.dy + v.dw + v.dh;
}

// Its gradient times `by`.
template <typename T>
FRCNN_HD Delta<T> box_loss_grad(const FrcnnBoxSamples& s, int64_t row, const Delta<T>& delta,
                                const Delta<T>& stds, T by) {
  const Box<float> box = load_box(s.boxes + row * s.box_stride), target = load_box(s.targets + row * 4);
  if (s.mode == kFrcnnL1) {
    const Delta<T> goal = wanted<T>(box, target, stds);
    return {by * sign(delta.dx, goal.dx), by * sign(delta.dy, goal.dy), by * sign(delta.dw, goal.dw),
            by * sign(delta.dh, goal.dh)};
  }
  const Box<T> own = widened<T>(box), found = decode(own, delta, stds), truth = widened<T>(target);
  const IouLoss mode = static_cast<IouLoss>(s.mode);
  const Box<T> by_box = mode == IouLoss::kBounded
                            ? bounded_iou_loss_grad(found, truth, static_cast<T>(s.beta),
                                                    static_cast<T>(s.eps), Delta<T>{by, by, by, by})
                            : detail::scale(by, iou_loss(mode, found, truth, static_cast<T>(s.eps)).grad);
  return decode_grad(own, delta, stds, by_box);
}

}  // namespace frcnn
