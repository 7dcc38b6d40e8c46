// Anchors of a feature pyramid: every base anchor, shifted to every cell.
#include "anchors.h"
#include "parallel.h"

void frcnn_cpu_grid_anchors(const FrcnnAnchors* grid, const int64_t* sizes, float* anchors) {
  using namespace frcnn;
  for (int64_t level = 0; level < grid->levels; ++level) {
    const int64_t height = sizes[2 * level], width = sizes[2 * level + 1];
    if (width == 0) continue;
    const float stride = grid->strides[level];
    const auto base = base_anchors(*grid, level);
    const int64_t row_size = width * static_cast<int64_t>(base.size()) * 4;
    parallel_for(height, 16, [&](int64_t begin, int64_t end) {
      float* out = anchors + begin * row_size;
      for (int64_t y = begin; y < end; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          for (const Box<float>& anchor : base) {
            store_box(out, shift(anchor, static_cast<float>(x) * stride, static_cast<float>(y) * stride));
            out += 4;
          }
        }
      }
    });
    anchors += height * row_size;
  }
}
