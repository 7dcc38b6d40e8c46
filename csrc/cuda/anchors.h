// The anchors of a grid as a kernel parameter, and the anchor of one index.
#pragma once

#include "../box.h"
#include "../kernel_api.h"
#include "launch.h"

namespace frcnn {

struct AnchorGrid {
  float strides[kFrcnnMostLevels], scales[kFrcnnMostShapes], ratios[kFrcnnMostShapes];
  int num_scales, num_ratios;
  float center_offset;
};

// False if there are more levels, scales or ratios than the parameter holds.
inline bool copy_grid(const FrcnnAnchors& from, AnchorGrid* to) {
  if (from.levels > kFrcnnMostLevels || from.num_scales > kFrcnnMostShapes ||
      from.num_ratios > kFrcnnMostShapes)
    return false;
  *to = {};
  for (int64_t i = 0; i < from.levels; ++i) to->strides[i] = from.strides[i];
  for (int64_t i = 0; i < from.num_scales; ++i) to->scales[i] = from.scales[i];
  for (int64_t i = 0; i < from.num_ratios; ++i) to->ratios[i] = from.ratios[i];
  to->num_scales = static_cast<int>(from.num_scales);
  to->num_ratios = static_cast<int>(from.num_ratios);
  to->center_offset = from.center_offset;
  return true;
}

// Anchor `i` of a level that is `width` cells wide. 32-bit, because a 64-bit division costs as much as a
// store.
__device__ __forceinline__ Box<float> anchor(const AnchorGrid& grid, int level, unsigned i, unsigned width) {
  const unsigned per_cell = static_cast<unsigned>(grid.num_scales * grid.num_ratios);
  const unsigned cell = i / per_cell, y = cell / width, x = cell - y * width;
  const int shape = static_cast<int>(i - cell * per_cell);
  const float stride = grid.strides[level];
  const Box<float> base = base_anchor(stride, grid.scales[shape % grid.num_scales],
                                      grid.ratios[shape / grid.num_scales], grid.center_offset);
  return shift(base, static_cast<float>(x) * stride, static_cast<float>(y) * stride);
}

}  // namespace frcnn
