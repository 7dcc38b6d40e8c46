// Box deltas: encode, decode, and the gradient of decode with respect to the deltas.
#include "parallel.h"
#include "types.h"

namespace frcnn {
namespace {

constexpr int64_t kGrain = 2048;

// Calls row(i) for every i below count.
template <typename F>
void for_rows(int64_t count, const F& row) {
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row(i);
  });
}

}  // namespace
}  // namespace frcnn

using namespace frcnn;

void frcnn_cpu_encode_boxes(int64_t type, const void* boxes, const void* targets, const double* stds,
                            int64_t n, void* deltas) {
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    const auto unit = stds_of<T>(stds);
    for_rows(n, [&](int64_t i) {
      const auto box = load_box(static_cast<const T*>(boxes) + 4 * i);
      store_delta(static_cast<T*>(deltas) + 4 * i,
                  encode(box, load_box(static_cast<const T*>(targets) + 4 * i), unit));
    });
  });
}

void frcnn_cpu_decode_boxes(int64_t type, const void* boxes, const void* deltas, const double* stds,
                            const int64_t* max_shape, int64_t n, int64_t classes, void* out) {
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    const auto unit = stds_of<T>(stds);
    for_rows(n * classes, [&](int64_t i) {
      const auto delta = load_delta(static_cast<const T*>(deltas) + 4 * i);
      auto box = decode(load_box(static_cast<const T*>(boxes) + 4 * (i / classes)), delta, unit);
      if (max_shape) box = clip(box, static_cast<T>(max_shape[0]), static_cast<T>(max_shape[1]));
      store_box(static_cast<T*>(out) + 4 * i, box);
    });
  });
}

void frcnn_cpu_decode_boxes_backward(int64_t type, const void* grad, const void* boxes, const void* deltas,
                                     const double* stds, const int64_t* max_shape, int64_t n, int64_t classes,
                                     void* grad_deltas) {
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    const auto unit = stds_of<T>(stds);
    for_rows(n * classes, [&](int64_t i) {
      const auto box = load_box(static_cast<const T*>(boxes) + 4 * (i / classes));
      const auto delta = load_delta(static_cast<const T*>(deltas) + 4 * i);
      auto by_box = load_box(static_cast<const T*>(grad) + 4 * i);
      if (max_shape) {
        by_box = clip_grad(decode(box, delta, unit), static_cast<T>(max_shape[0]),
                           static_cast<T>(max_shape[1]), by_box);
      }
      store_delta(static_cast<T*>(grad_deltas) + 4 * i, decode_grad(box, delta, unit, by_box));
    });
  });
}
