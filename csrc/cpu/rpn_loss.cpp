// The RPN's losses of sampled anchors, straight from the maps of all levels, and their gradient.
#include "../rpn_samples.h"
#include "types.h"

namespace frcnn {
namespace {

// Calls f(slot's anchor, its level's numbers) for the slots that are used.
template <typename T, typename F>
void for_used(const FrcnnRPNSamples& s, const F& f) {
  for (int64_t slot = 0; slot < s.batch * s.slots; ++slot) {
    const SampledAnchor a = sampled_anchor(s, s.maps, slot);
    if (a.used) f(a, static_cast<const T*>(s.maps[a.level].values));
  }
}

double average_factor(const FrcnnRPNSamples& s) {
  int64_t count = 0;
  for (int64_t image = 0; image < s.batch; ++image) count += counted_samples(s, image);
  return static_cast<double>(std::max<int64_t>(count, 1));
}

template <typename C, typename T>
Delta<C> delta_at(const SampledAnchor& a, const T* values) {
  const T* d = values + a.delta;
  return {widen(d[0]), widen(d[a.step]), widen(d[2 * a.step]), widen(d[3 * a.step])};
}

}  // namespace
}  // namespace frcnn

void frcnn_cpu_rpn_loss(int64_t type, const FrcnnRPNSamples* samples, void* of_class, void* of_box) {
  using namespace frcnn;
  for_any_type(type, [&](auto number) {
    using T = decltype(number);
    using C = Compute<T>;
    const auto stds = stds_of<C>(samples->stds);
    double classes = 0, boxes = 0;
    for_used<T>(*samples, [&](const SampledAnchor& a, const T* values) {
      classes += logit_loss<C>(widen(values[a.logit]), a.positive);
      if (!a.positive) return;
      const Delta<C> delta = delta_at<C>(a, values), goal = wanted<C>(a.box, a.target, stds);
      boxes += distance(delta.dx, goal.dx) + distance(delta.dy, goal.dy) + distance(delta.dw, goal.dw) +
               distance(delta.dh, goal.dh);
    });
    const double count = average_factor(*samples);
    *static_cast<C*>(of_class) = static_cast<C>(classes / count);
    *static_cast<C*>(of_box) = static_cast<C>(boxes / count);
  });
}

void frcnn_cpu_rpn_loss_backward(int64_t type, const FrcnnRPNSamples* samples, const void* by_class,
                                 const void* by_box, void* const* grads) {
  using namespace frcnn;
  for_any_type(type, [&](auto number) {
    using T = decltype(number);
    using C = Compute<T>;
    const auto stds = stds_of<C>(samples->stds);
    const C count = static_cast<C>(average_factor(*samples));
    const C of_class = *static_cast<const C*>(by_class) / count,
            of_box = *static_cast<const C*>(by_box) / count;
    for_used<T>(*samples, [&](const SampledAnchor& a, const T* values) {
      T* out = static_cast<T*>(grads[a.level]) + a.row;
      out[a.anchor] = narrow<T>(of_class * logit_loss_grad<C>(widen(values[a.logit]), a.positive));
      if (!a.positive) return;
      const Delta<C> delta = delta_at<C>(a, values), goal = wanted<C>(a.box, a.target, stds);
      out += samples->per_cell + 4 * a.anchor;
      out[0] = narrow<T>(of_box * sign(delta.dx, goal.dx));
      out[1] = narrow<T>(of_box * sign(delta.dy, goal.dy));
      out[2] = narrow<T>(of_box * sign(delta.dw, goal.dw));
      out[3] = narrow<T>(of_box * sign(delta.dh, goal.dh));
    });
  });
}
