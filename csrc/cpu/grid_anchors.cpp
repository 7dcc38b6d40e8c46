// Anchors of a feature pyramid: every base anchor, shifted to every cell; for images of their own sizes NaN
// in the cells beyond.
#include <limits>

#include "anchors.h"
#include "parallel.h"

namespace frcnn {
namespace {

// size: the image's (height, width), or null for one without end. Returns where the anchors end.
float* anchors_of(const FrcnnAnchors& grid, const int64_t* sizes, const float* size, float* anchors) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const float image_height = size ? size[0] : infinity, image_width = size ? size[1] : infinity;
  for (int64_t level = 0; level < grid.levels; ++level) {
    const int64_t height = sizes[2 * level], width = sizes[2 * level + 1];
    if (width == 0) continue;
    const float stride = grid.strides[level];
    const auto base = base_anchors(grid, level);
    const int64_t row_size = width * static_cast<int64_t>(base.size()) * 4;
    parallel_for(height, 16, [&](int64_t begin, int64_t end) {
      float* out = anchors + begin * row_size;
      for (int64_t y = begin; y < end; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          const float left = static_cast<float>(x) * stride, top = static_cast<float>(y) * stride;
          const bool inside = top < image_height && left < image_width;
          for (const Box<float>& anchor : base) {
            store_box(out, inside ? shift(anchor, left, top) : Box<float>{nan, nan, nan, nan});
            out += 4;
          }
        }
      }
    });
    anchors += height * row_size;
  }
  return anchors;
}

}  // namespace
}  // namespace frcnn

void frcnn_cpu_grid_anchors(const FrcnnAnchors* grid, const int64_t* sizes, const float* image_sizes,
                            int64_t images, float* anchors) {
  if (!image_sizes) frcnn::anchors_of(*grid, sizes, nullptr, anchors);
  for (int64_t image = 0; image_sizes && image < images; ++image)
    anchors = frcnn::anchors_of(*grid, sizes, image_sizes + 2 * image, anchors);
}
