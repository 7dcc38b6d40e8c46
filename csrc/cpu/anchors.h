// The anchors of one level at its first cell, ratio-major.
#pragma once

#include <vector>

#include "../box.h"
#include "../kernel_api.h"

namespace frcnn {

inline std::vector<Box<float>> base_anchors(const FrcnnAnchors& grid, int64_t level) {
  std::vector<Box<float>> base;
  for (int64_t ratio = 0; ratio < grid.num_ratios; ++ratio) {
    for (int64_t scale = 0; scale < grid.num_scales; ++scale) {
      base.push_back(
          base_anchor(grid.strides[level], grid.scales[scale], grid.ratios[ratio], grid.center_offset));
    }
  }
  return base;
}

}  // namespace frcnn
