#include "binding.h"

namespace frcnn {
namespace {

Tensor box_iou(const Tensor& a, const Tensor& b) {
  const Argument first{"box_iou", "a", a}, second{"box_iou", "b", b};
  expect_shape(first, {-1, 4}, "[N, 4]");
  expect_shape(second, {-1, 4}, "[M, 4]");
  expect_float(first);
  expect_like(second, first);
  expect_elements("box_iou", "the result", {a.size(0), b.size(0)});
  const OnDevice guard(a.device());
  const Tensor a_rows = contiguous(a), b_rows = contiguous(b);
  Tensor out = empty({a.size(0), b.size(0)}, a);
  FRCNN_RUN(box_iou, a.device(), type_of(a), a_rows.const_data_ptr(), b_rows.const_data_ptr(), a.size(0),
            b.size(0), out.mutable_data_ptr());
  return out;
}

}  // namespace

// a [N, 4], b [M, 4] -> [N, M]
FRCNN_OPERATOR(box_iou, "box_iou(Tensor a, Tensor b) -> Tensor")

}  // namespace frcnn
