// The box of a detection that select_detections considers. Torch-free, for CPU and CUDA.
#pragma once

#include "box.h"
#include "kernel_api.h"

namespace frcnn {

// Of proposal `row` of an image as class `label`, in pixels of the original image.
FRCNN_HD Box<float> detected_box(const FrcnnSelection& s, const Delta<float>& stds, int64_t image,
                                 int64_t row, int64_t label) {
  const int64_t i = image * s.proposals_per_image + row;
  const float* d = s.deltas + (s.class_agnostic ? i : i * s.classes + label) * 4;
  const Box<float> box = decode(load_box(s.proposals + i * 4), Delta<float>{d[0], d[1], d[2], d[3]}, stds);
  return unscale(clip(box, s.sizes[image * 2], s.sizes[image * 2 + 1]), s.scales + image * 2);
}

}  // namespace frcnn
