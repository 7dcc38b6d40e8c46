// The anchors of a grid, as grid_anchors and select_proposals hand them to their kernels.
#pragma once

#include "binding.h"

namespace frcnn {

// The arrays that FrcnnAnchors points to.
struct AnchorArrays {
  AnchorArrays(const char* op, Device device, Floats strides, Floats scales, Floats ratios,
               double center_offset)
      : strides(strides.begin(), strides.end()),
        scales(scales.begin(), scales.end()),
        ratios(ratios.begin(), ratios.end()) {
    grid = {this->strides.data(),
            this->scales.data(),
            this->ratios.data(),
            static_cast<int64_t>(strides.size()),
            static_cast<int64_t>(scales.size()),
            static_cast<int64_t>(ratios.size()),
            static_cast<float>(center_offset)};
    expect_at_most(op, "levels", device, grid.levels, kFrcnnMostLevels);
    expect_at_most(op, "scales", device, grid.num_scales, kFrcnnMostShapes);
    expect_at_most(op, "ratios", device, grid.num_ratios, kFrcnnMostShapes);
  }

  std::vector<float> strides, scales, ratios;
  FrcnnAnchors grid;
};

}  // namespace frcnn
