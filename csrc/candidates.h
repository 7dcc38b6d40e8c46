// What sample_proposals makes of an image's candidates. Torch-free, for CPU and CUDA.
#pragma once

#include "box.h"
#include "kernel_api.h"

namespace frcnn {

// Of candidate i: -1 may not be sampled, 0 negative, k + 1 belongs to gt k. A gt without an area has no
// deltas to learn from, and a proposal of a gt that does not exist none either.
FRCNN_HD int64_t assigned_to(const FrcnnCandidates& c, int64_t image, int64_t i) {
  if (i >= c.g) {
    const int64_t row = image * c.p + i - c.g;
    return c.scores[row] == -INFINITY || c.gt_index[row] > c.g ? -1 : c.gt_index[row];
  }
  const Box<float> gt = load_box(c.gts + (image * c.g + i) * 4);
  return i < c.counts[image] && gt.x2 > gt.x1 && gt.y2 > gt.y1 ? i + 1 : -1;
}

// What is written to a slot: `i` is its candidate, -1 for none. An unused one still passes through the head,
// as any small box.
FRCNN_HD void write_slot(const FrcnnCandidates& c, int64_t image, int64_t slot, int64_t i, float* rois,
                         int64_t* labels, float* targets) {
  Box<float> box{0, 0, 1, 1};
  if (i >= 0)
    box = load_box(i < c.g ? c.gts + (image * c.g + i) * 4 : c.proposals + (image * c.p + i - c.g) * 4);
  const int64_t gt = i >= 0 ? assigned_to(c, image, i) - 1 : -1;
  rois[5 * slot] = static_cast<float>(image);
  store_box(rois + 5 * slot + 1, box);
  labels[slot] = gt >= 0 ? c.labels[image * c.g + gt] : c.background;
  store_box(targets + 4 * slot, gt >= 0 ? load_box(c.gts + (image * c.g + gt) * 4) : box);
}

}  // namespace frcnn
