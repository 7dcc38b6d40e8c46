// Pairwise IoU: one row per box of `a`, vectorized over the boxes of `b`, which lie there by coordinate.
#include <algorithm>
#include <vector>

#include "parallel.h"
#include "types.h"
#include "vectorize.h"

namespace frcnn {
namespace {

template <typename T>
FRCNN_INLINE void fill_row(const Box<T>& box, const T* x1, const T* y1, const T* x2, const T* y2,
                           const T* area, int64_t count, T* out) {
  const T own_area = box.area();
  for (int64_t i = 0; i < count; ++i) {
    out[i] = iou(box, own_area, Box<T>{x1[i], y1[i], x2[i], y2[i]}, area[i]);
  }
}

FRCNN_VECTORIZED void iou_row(const Box<float>& box, const float* columns, int64_t n, float* out) {
  fill_row(box, columns, columns + n, columns + 2 * n, columns + 3 * n, columns + 4 * n, n, out);
}
FRCNN_VECTORIZED void iou_row(const Box<double>& box, const double* columns, int64_t n, double* out) {
  fill_row(box, columns, columns + n, columns + 2 * n, columns + 3 * n, columns + 4 * n, n, out);
}

}  // namespace
}  // namespace frcnn

void frcnn_cpu_box_iou(int64_t type, const void* a, const void* b, int64_t n, int64_t m, void* out) {
  using namespace frcnn;
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    const T *rows = static_cast<const T*>(a), *others = static_cast<const T*>(b);
    std::vector<T> columns(5 * m);
    for (int64_t i = 0; i < m; ++i) {
      const auto box = load_box(others + 4 * i);
      const T values[5] = {box.x1, box.y1, box.x2, box.y2, box.area()};
      for (int c = 0; c < 5; ++c) columns[c * m + i] = values[c];
    }
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(m, 1));
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        iou_row(load_box(rows + 4 * i), columns.data(), m, static_cast<T*>(out) + i * m);
      }
    });
  });
}
