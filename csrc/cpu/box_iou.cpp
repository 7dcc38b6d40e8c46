// Pairwise IoU: one row per box of `a`, vectorised over the boxes of `b`, which lie there by coordinate.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

#include "../box.h"
#include "../checks.h"
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

at::Tensor box_iou(const at::Tensor& a, const at::Tensor& b) {
  check_box_iou(a, b);
  const int64_t rows = a.size(0), columns = b.size(0);
  at::Tensor out = at::empty({rows, columns}, a.options());
  const at::Tensor first = a.contiguous(), second = b.contiguous();
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "box_iou", [&] {
    std::vector<scalar_t> by_coordinate(5 * columns);
    for (int64_t i = 0; i < columns; ++i) {
      const auto box = load_box(second.const_data_ptr<scalar_t>() + 4 * i);
      const scalar_t values[5] = {box.x1, box.y1, box.x2, box.y2, box.area()};
      for (int c = 0; c < 5; ++c) by_coordinate[c * columns + i] = values[c];
    }
    const scalar_t* boxes = first.const_data_ptr<scalar_t>();
    scalar_t* ious = out.mutable_data_ptr<scalar_t>();
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(columns, 1));
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        iou_row(load_box(boxes + 4 * i), by_coordinate.data(), columns, ious + i * columns);
      }
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CPU, m) { m.impl("box_iou", &box_iou); }

}  // namespace frcnn
