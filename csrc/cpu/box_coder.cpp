// Box deltas: encode, decode, and the gradient of decode with respect to the deltas.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <limits>

#include "../box.h"
#include "../checks.h"

namespace frcnn {
namespace {

constexpr int64_t kGrain = 2048;

template <typename T>
Delta<T> load_delta(const T* p) {
  return {p[0], p[1], p[2], p[3]};
}
template <typename T>
void store_delta(T* p, const Delta<T>& d) {
  p[0] = d.dx;
  p[1] = d.dy;
  p[2] = d.dw;
  p[3] = d.dh;
}
template <typename T>
Delta<T> stds_of(at::ArrayRef<double> stds) {
  return {static_cast<T>(stds[0]), static_cast<T>(stds[1]), static_cast<T>(stds[2]), static_cast<T>(stds[3])};
}

at::Tensor encode_boxes(const at::Tensor& boxes, const at::Tensor& targets, at::ArrayRef<double> stds) {
  check_encode_boxes(boxes, targets, stds);
  const at::Tensor box_rows = boxes.contiguous(), target_rows = targets.contiguous();
  at::Tensor deltas = at::empty_like(box_rows);
  AT_DISPATCH_FLOATING_TYPES(boxes.scalar_type(), "encode_boxes", [&] {
    const scalar_t* box = box_rows.const_data_ptr<scalar_t>();
    const scalar_t* target = target_rows.const_data_ptr<scalar_t>();
    scalar_t* out = deltas.mutable_data_ptr<scalar_t>();
    const auto unit = stds_of<scalar_t>(stds);
    at::parallel_for(0, boxes.size(0), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = 4 * begin; i < 4 * end; i += 4) {
        store_delta(out + i, encode(load_box(box + i), load_box(target + i), unit));
      }
    });
  });
  return deltas;
}

at::Tensor decode_boxes(const at::Tensor& boxes, const at::Tensor& deltas, at::ArrayRef<double> stds,
                        at::OptionalIntArrayRef max_shape) {
  check_decode_boxes(boxes, deltas, stds, max_shape);
  const at::Tensor box_rows = boxes.contiguous(), delta_rows = deltas.contiguous();
  at::Tensor decoded = at::empty_like(delta_rows);
  const int64_t classes = deltas.size(1) / 4;
  AT_DISPATCH_FLOATING_TYPES(boxes.scalar_type(), "decode_boxes", [&] {
    const scalar_t* box = box_rows.const_data_ptr<scalar_t>();
    const scalar_t* delta = delta_rows.const_data_ptr<scalar_t>();
    scalar_t* out = decoded.mutable_data_ptr<scalar_t>();
    const auto unit = stds_of<scalar_t>(stds);
    at::parallel_for(0, boxes.size(0) * classes, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto moved = decode(load_box(box + 4 * (i / classes)), load_delta(delta + 4 * i), unit);
        store_box(out + 4 * i, max_shape.has_value() ? clip(moved, static_cast<scalar_t>((*max_shape)[0]),
                                                            static_cast<scalar_t>((*max_shape)[1]))
                                                     : moved);
      }
    });
  });
  return decoded;
}

at::Tensor decode_boxes_backward(const at::Tensor& grad, const at::Tensor& boxes, const at::Tensor& deltas,
                                 at::ArrayRef<double> stds, at::OptionalIntArrayRef max_shape) {
  check_decode_boxes_backward(grad, boxes, deltas, stds, max_shape);
  const at::Tensor grad_rows = grad.contiguous(), box_rows = boxes.contiguous(),
                   delta_rows = deltas.contiguous();
  at::Tensor result = at::empty_like(delta_rows);
  const int64_t classes = deltas.size(1) / 4;
  AT_DISPATCH_FLOATING_TYPES(boxes.scalar_type(), "decode_boxes_backward", [&] {
    const scalar_t* upstream = grad_rows.const_data_ptr<scalar_t>();
    const scalar_t* boxes_in = box_rows.const_data_ptr<scalar_t>();
    const scalar_t* deltas_in = delta_rows.const_data_ptr<scalar_t>();
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    const auto unit = stds_of<scalar_t>(stds);
    at::parallel_for(0, boxes.size(0) * classes, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto box = load_box(boxes_in + 4 * (i / classes));
        const auto delta = load_delta(deltas_in + 4 * i);
        auto from_box = load_box(upstream + 4 * i);
        if (max_shape.has_value()) {
          from_box = clip_grad(decode(box, delta, unit), static_cast<scalar_t>((*max_shape)[0]),
                               static_cast<scalar_t>((*max_shape)[1]), from_box);
        }
        store_delta(out + 4 * i, decode_grad(box, delta, unit, from_box));
      }
    });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CPU, m) {
  m.impl("encode_boxes", &encode_boxes);
  m.impl("decode_boxes", &decode_boxes);
  m.impl("decode_boxes_backward", &decode_boxes_backward);
}

}  // namespace frcnn
