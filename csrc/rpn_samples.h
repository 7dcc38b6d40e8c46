// What rpn_loss makes of one sampled anchor. Torch-free, for CPU and CUDA.
#pragma once

#include "box.h"
#include "kernel_api.h"

namespace frcnn {

// Where a slot's numbers are, and what they should be.
struct SampledAnchor {
  bool used, positive;
  int level;
  int64_t logit;        // from the level's map
  int64_t delta, step;  // of the first delta, and from one to the next
  int64_t row;          // of the gradient [B, H, W, per_cell * 5]: where the cell begins
  int64_t anchor;       // in the cell
  Box<float> box, target;
};

// Of an image's slots, as many as there are: positives come first, then negatives.
struct SlotCounts {
  int64_t positives, negatives;
  FRCNN_HD int64_t used() const { return positives + negatives; }
};
FRCNN_HD int64_t count_in(int64_t count, int64_t most) {
  return count < 0 ? 0 : (count < most ? count : most);
}
FRCNN_HD SlotCounts slot_counts(const int64_t* counts, int64_t image, int64_t slots) {
  const int64_t positives = count_in(counts[2 * image], slots);
  return {positives, count_in(counts[2 * image + 1], slots - positives)};
}

// maps: s.maps, or a copy of it. slot: among all images'; unused where its index is no anchor's.
FRCNN_HD SampledAnchor sampled_anchor(const FrcnnRPNSamples& s, const FrcnnRPNMap* maps, int64_t slot) {
  SampledAnchor a{};
  const int64_t image = slot / s.slots, place = slot - image * s.slots;
  const SlotCounts counts = slot_counts(s.counts, image, s.slots);
  const int64_t index = s.index[slot];
  if (place >= counts.used() || index < 0 || index >= s.n) return a;
  int64_t i = index;
  for (;; ++a.level) {
    const int64_t anchors = maps[a.level].height * maps[a.level].width * s.per_cell;
    if (i < anchors) break;
    i -= anchors;
  }
  const FrcnnRPNMap& map = maps[a.level];
  const int64_t cell = i / s.per_cell, y = cell / map.width, x = cell - y * map.width;
  a.used = true;
  a.anchor = i - cell * s.per_cell;
  a.row = (image * map.height * map.width + cell) * s.per_cell * 5;
  const int64_t first = image * map.strides[0] + y * map.strides[2] + x * map.strides[3];
  a.step = map.strides[1];
  a.logit = first + a.anchor * a.step;
  a.delta = first + (s.per_cell + 4 * a.anchor) * a.step;
  const int64_t gt = s.gt_index[image * s.n + index];
  a.positive = place < counts.positives && gt >= 1 && gt <= s.g;
  if (a.positive) {
    a.box = load_box(s.anchors + image * s.anchor_stride + index * 4);
    a.target = load_box(s.gts + (image * s.g + gt - 1) * 4);
  }
  return a;
}

// Both kinds count at least one per image, as MMDetection counts them.
FRCNN_HD int64_t counted_samples(const FrcnnRPNSamples& s, int64_t image) {
  const SlotCounts counts = slot_counts(s.counts, image, s.slots);
  return max_of(counts.positives, int64_t{1}) + max_of(counts.negatives, int64_t{1});
}

// Binary cross-entropy of a logit.
template <typename T>
FRCNN_HD T logit_loss(T x, bool positive) {
  const T size = x < T(0) ? -x : x;
  return max_of(x, T(0)) - (positive ? x : T(0)) + std::log1p(std::exp(-size));
}
template <typename T>
FRCNN_HD T logit_loss_grad(T x, bool positive) {
  const T small = std::exp(x < T(0) ? x : -x);  // never overflows
  const T sigmoid = (x < T(0) ? small : T(1)) / (T(1) + small);
  return sigmoid - (positive ? T(1) : T(0));
}

template <typename T>
FRCNN_HD Box<T> widened(const Box<float>& b) {
  return {T(b.x1), T(b.y1), T(b.x2), T(b.y2)};
}
// The deltas that a box should have.
template <typename T>
FRCNN_HD Delta<T> wanted(const Box<float>& box, const Box<float>& target, const Delta<T>& stds) {
  return encode(widened<T>(box), widened<T>(target), stds);
}
template <typename T>
FRCNN_HD T distance(T a, T b) {
  return a < b ? b - a : a - b;
}
// d |a - b| / d a, 0 where they are equal and, as torch has it, where either is NaN.
template <typename T>
FRCNN_HD T sign(T a, T b) {
  return a > b ? T(1) : (a < b ? T(-1) : T(0));
}

}  // namespace frcnn
