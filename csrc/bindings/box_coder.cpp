#include "binding.h"

namespace frcnn {
namespace {

Tensor encode_boxes(const Tensor& boxes, const Tensor& targets, Floats stds) {
  const Argument box{"encode_boxes", "boxes", boxes}, target{"encode_boxes", "targets", targets};
  expect_shape(box, {-1, 4}, "[N, 4]");
  expect_shape(target, {boxes.size(0), 4}, "[N, 4] with one target per box");
  expect_float(box);
  expect_like(target, box);
  expect_stds("encode_boxes", stds);
  const OnDevice guard(boxes.device());
  const Tensor box_rows = contiguous(boxes), target_rows = contiguous(targets);
  Tensor deltas = empty_like(box_rows);
  FRCNN_RUN(encode_boxes, boxes.device(), type_of(boxes), box_rows.const_data_ptr(),
            target_rows.const_data_ptr(), stds.data(), boxes.size(0), deltas.mutable_data_ptr());
  return deltas;
}

void check_decode_boxes(const Tensor& boxes, const Tensor& deltas, Floats stds,
                        std::optional<Ints> max_shape) {
  const Argument box{"decode_boxes", "boxes", boxes}, delta{"decode_boxes", "deltas", deltas};
  expect_shape(box, {-1, 4}, "[N, 4]");
  expect_shape(delta, {boxes.size(0), -1}, "[N, 4 * C] with one row per box");
  FRCNN_CHECK(deltas.size(1) % 4 == 0, "decode_boxes: deltas has shape ", deltas.sizes(),
              ", expected [N, 4 * C]: a multiple of 4 columns");
  expect_float(box);
  expect_like(delta, box);
  expect_stds("decode_boxes", stds);
  FRCNN_CHECK(
      !max_shape.has_value() || (max_shape->size() == 2 && (*max_shape)[0] >= 0 && (*max_shape)[1] >= 0),
      "decode_boxes: max_shape is ", *max_shape, ", expected (height, width) in pixels");
}

const int64_t* data_or_null(std::optional<Ints> values) {
  return values.has_value() ? values->data() : nullptr;
}

Tensor decode_boxes(const Tensor& boxes, const Tensor& deltas, Floats stds, std::optional<Ints> max_shape) {
  check_decode_boxes(boxes, deltas, stds, max_shape);
  const OnDevice guard(boxes.device());
  const Tensor box_rows = contiguous(boxes), delta_rows = contiguous(deltas);
  Tensor decoded = empty_like(delta_rows);
  FRCNN_RUN(decode_boxes, boxes.device(), type_of(boxes), box_rows.const_data_ptr(),
            delta_rows.const_data_ptr(), stds.data(), data_or_null(max_shape), boxes.size(0),
            deltas.size(1) / 4, decoded.mutable_data_ptr());
  return decoded;
}

Tensor decode_boxes_backward(const Tensor& grad, const Tensor& boxes, const Tensor& deltas, Floats stds,
                             std::optional<Ints> max_shape) {
  check_decode_boxes(boxes, deltas, stds, max_shape);
  const Argument gradient{"decode_boxes_backward", "grad", grad};
  expect_shape(gradient, {deltas.size(0), deltas.size(1)}, "the shape of deltas");
  expect_like(gradient, {"decode_boxes_backward", "deltas", deltas});
  const OnDevice guard(boxes.device());
  const Tensor grad_rows = contiguous(grad), box_rows = contiguous(boxes), delta_rows = contiguous(deltas);
  Tensor result = empty_like(delta_rows);
  FRCNN_RUN(decode_boxes_backward, boxes.device(), type_of(boxes), grad_rows.const_data_ptr(),
            box_rows.const_data_ptr(), delta_rows.const_data_ptr(), stds.data(), data_or_null(max_shape),
            boxes.size(0), deltas.size(1) / 4, result.mutable_data_ptr());
  return result;
}

}  // namespace

// boxes [N, 4], targets [N, 4] -> deltas [N, 4]
FRCNN_OPERATOR(encode_boxes, "encode_boxes(Tensor boxes, Tensor targets, float[] stds) -> Tensor")
// boxes [N, 4], deltas [N, 4*C] -> [N, 4*C]; max_shape (H, W) clips to the image
FRCNN_OPERATOR(decode_boxes,
               "decode_boxes(Tensor boxes, Tensor deltas, float[] stds, int[]? max_shape) -> Tensor")
FRCNN_OPERATOR(
    decode_boxes_backward,
    "decode_boxes_backward(Tensor grad, Tensor boxes, Tensor deltas, float[] stds, int[]? max_shape) "
    "-> Tensor")

}  // namespace frcnn
