// The box head's losses, straight from its outputs, and their gradient: a row at a time, rows shared among
// threads. Sums are taken afterward, in the order of the rows.
#include <vector>

#include "../box_samples.h"
#include "parallel.h"
#include "types.h"

namespace frcnn {
namespace {

constexpr int64_t kGrain = 16;  // rows

// Of a row's logits: the largest, and the sum of their exponentials by it.
template <typename C>
struct Softmax {
  C largest, sum;
};
template <typename C, typename T>
Softmax<C> softmax_of(const T* logits, int64_t count) {
  C largest = widen(logits[0]);
  for (int64_t i = 1; i < count; ++i) largest = max_of<C>(widen(logits[i]), largest);
  C sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(widen(logits[i]) - largest);
  return {largest, sum};
}

// Whether a label's logit is the highest, the first one of equal ones.
template <typename T>
bool is_first_highest(const T* logits, int64_t count, int64_t label) {
  const auto own = widen(logits[label]);
  bool highest = true;
  for (int64_t i = 0; i < count; ++i) {
    highest = highest && (i < label ? widen(logits[i]) < own : widen(logits[i]) <= own);
  }
  return highest;
}

template <typename C, typename T>
Delta<C> delta_at(const T* d) {
  return {widen(d[0]), widen(d[1]), widen(d[2]), widen(d[3])};
}

}  // namespace
}  // namespace frcnn

int64_t frcnn_cpu_box_head_loss_workspace(const FrcnnBoxSamples* samples) {
  return samples->rows * 3 * static_cast<int64_t>(sizeof(double));
}

void frcnn_cpu_box_head_loss(int64_t type, const FrcnnBoxSamples* samples, void* workspace, void* of_class,
                             void* of_box, void* accuracy) {
  using namespace frcnn;
  const FrcnnBoxSamples& s = *samples;
  double* of_row = static_cast<double*>(workspace);
  for_any_type(type, [&](auto number) {
    using T = decltype(number);
    using C = Compute<T>;
    const auto stds = stds_of<C>(s.stds);
    parallel_for(s.rows, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* outputs = static_cast<const T*>(s.outputs) + row * row_length(s);
        const SampledBox box = sampled_box(s, row);
        double* own = of_row + 3 * row;
        own[0] = own[1] = own[2] = 0;
        if (!box.used) continue;
        const Softmax<C> softmax = softmax_of<C>(outputs, s.classes + 1);
        own[0] = std::log(softmax.sum) - (widen(outputs[box.label]) - softmax.largest);
        own[2] = is_first_highest(outputs, s.classes + 1, box.label) ? 1 : 0;
        if (box.positive) own[1] = box_loss<C>(s, row, delta_at<C>(outputs + box.delta), stds);
      }
    });
    double sums[3] = {0, 0, 0};
    for (int64_t row = 0; row < s.rows; ++row) {
      for (int v = 0; v < 3; ++v) sums[v] += of_row[3 * row + v];
    }
    const double count = static_cast<double>(used_rows(s));
    *static_cast<C*>(of_class) = static_cast<C>(sums[0] / count);
    *static_cast<C*>(of_box) = static_cast<C>(s.weight * sums[1] / count);
    *static_cast<C*>(accuracy) = static_cast<C>(100 * sums[2] / count);
  });
}

void frcnn_cpu_box_head_loss_backward(int64_t type, const FrcnnBoxSamples* samples, const void* by_class,
                                      const void* by_box, void* grad) {
  using namespace frcnn;
  const FrcnnBoxSamples& s = *samples;
  for_any_type(type, [&](auto number) {
    using T = decltype(number);
    using C = Compute<T>;
    const auto stds = stds_of<C>(s.stds);
    const C count = static_cast<C>(used_rows(s)), of_class = *static_cast<const C*>(by_class) / count;
    const C of_box = static_cast<C>(s.weight) * *static_cast<const C*>(by_box) / count;
    parallel_for(s.rows, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t length = row_length(s);
        const T* outputs = static_cast<const T*>(s.outputs) + row * length;
        T* out = static_cast<T*>(grad) + row * length;
        const SampledBox box = sampled_box(s, row);
        for (int64_t i = 0; i < length; ++i) out[i] = narrow<T>(C(0));
        if (!box.used) continue;
        const Softmax<C> softmax = softmax_of<C>(outputs, s.classes + 1);
        for (int64_t i = 0; i <= s.classes; ++i) {
          const C probability = std::exp(widen(outputs[i]) - softmax.largest) / softmax.sum;
          out[i] = narrow<T>(of_class * (probability - (i == box.label ? C(1) : C(0))));
        }
        if (!box.positive) continue;
        const auto d = box_loss_grad<C>(s, row, delta_at<C>(outputs + box.delta), stds, of_box);
        out[box.delta] = narrow<T>(d.dx);
        out[box.delta + 1] = narrow<T>(d.dy);
        out[box.delta + 2] = narrow<T>(d.dw);
        out[box.delta + 3] = narrow<T>(d.dh);
      }
    });
  });
}
