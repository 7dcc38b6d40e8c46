#include "binding.h"

namespace frcnn {
namespace {

at::Tensor box_iou(const at::Tensor& a, const at::Tensor& b) {
  const Argument first{"box_iou", "a", a}, second{"box_iou", "b", b};
  expect_shape(first, {-1, 4}, "[N, 4]");
  expect_shape(second, {-1, 4}, "[M, 4]");
  expect_float(first);
  expect_like(second, first);
  expect_elements("box_iou", "the result", {a.size(0), b.size(0)});
  const c10::DeviceGuard guard(a.device());
  const at::Tensor a_rows = a.contiguous(), b_rows = b.contiguous();
  at::Tensor out = at::empty({a.size(0), b.size(0)}, a.options());
  FRCNN_RUN(box_iou, a.device(), type_of(a), a_rows.const_data_ptr(), b_rows.const_data_ptr(), a.size(0),
            b.size(0), out.mutable_data_ptr());
  return out;
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // a [N, 4], b [M, 4] -> [N, M]
  define(m, "box_iou(Tensor a, Tensor b) -> Tensor", &box_iou);
}

}  // namespace
}  // namespace frcnn
