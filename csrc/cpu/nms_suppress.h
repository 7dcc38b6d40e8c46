// Greedy suppression of boxes that are visited best first, shared by nms.cpp and select_detections.cpp.
//
// A box is compared with the boxes kept so far only, so neither time nor memory goes to an N x N matrix. Kept
// boxes are stored by coordinate, so one candidate meets a vector of them at a time. A box is suppressed if
// inter / union > threshold, as box_iou() computes it: exact ties with the threshold survive.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "types.h"
#include "vectorize.h"

namespace frcnn {
namespace {

template <typename T>
struct Candidate {
  int64_t group;
  T score;
  int64_t index;
};

// Higher scores first, NaN last, the lower index first among equals.
template <typename T>
bool better(const Candidate<T>& a, const Candidate<T>& b) {
  if (a.score > b.score) return true;
  if (a.score < b.score) return false;
  const bool a_nan = std::isnan(a.score), b_nan = std::isnan(b.score);
  return a_nan != b_nan ? b_nan : a.index < b.index;
}

// Boxes by coordinate, padded to whole vectors with empty boxes, which overlap nothing.
template <typename T>
class BoxColumns {
 public:
  static constexpr int64_t kBlock = 32;

  explicit BoxColumns(int64_t capacity)
      : stride_((capacity + kBlock - 1) / kBlock * kBlock), values_(5 * stride_, T(0)) {}

  int64_t size() const { return size_; }
  const T* column(int i) const { return values_.data() + i * stride_; }

  void push(const Box<T>& box) {
    const T values[5] = {box.x1, box.y1, box.x2, box.y2, box.area()};
    for (int i = 0; i < 5; ++i) values_[i * stride_ + size_] = values[i];
    ++size_;
  }

 private:
  int64_t stride_, size_ = 0;
  std::vector<T> values_;
};

// Whether one of the kept boxes [begin, end) suppresses the box. It may look at some before `begin`.
template <typename T>
FRCNN_INLINE bool any_suppresses(const BoxColumns<T>& kept, int64_t begin, int64_t end, const Box<T>& box,
                                 T threshold) {
  constexpr int64_t kBlock = BoxColumns<T>::kBlock;
  const T *x1 = kept.column(0), *y1 = kept.column(1), *x2 = kept.column(2), *y2 = kept.column(3),
          *areas = kept.column(4);
  const T area = box.area();
  for (int64_t block = begin / kBlock * kBlock; block < end; block += kBlock) {
    int hits = 0;
    for (int64_t i = block; i < block + kBlock; ++i) {
      hits |= iou(Box<T>{x1[i], y1[i], x2[i], y2[i]}, areas[i], box, area) > threshold;
    }
    if (hits) return true;
  }
  return false;
}

FRCNN_VECTORIZED bool suppressed(const BoxColumns<float>& kept, int64_t begin, int64_t end,
                                 const Box<float>& box, float threshold) {
  return any_suppresses(kept, begin, end, box, threshold);
}
[[maybe_unused]] FRCNN_VECTORIZED bool suppressed(const BoxColumns<double>& kept, int64_t begin, int64_t end,
                                                  const Box<double>& box, double threshold) {
  return any_suppresses(kept, begin, end, box, threshold);
}

// Below this many pairs of boxes, about a millisecond, waking the other threads costs more than it gives.
constexpr int64_t kPairsWorthThreads = 1 << 22;

// Greedy suppression of candidates that come best first; at most max_keep are kept, in order.
template <typename T>
std::vector<Candidate<T>> suppress(const T* boxes, const Candidate<T>* candidates, int64_t count, T threshold,
                                   int64_t max_keep) {
  // Candidates of a chunk meet the boxes kept before it in parallel, and each other in order.
  constexpr int64_t kChunk = 4096;
  std::vector<Candidate<T>> kept;
  BoxColumns<T> columns(std::min(count, max_keep));
  std::vector<char> dropped(std::min(count, kChunk));
  for (int64_t chunk = 0; chunk < count && columns.size() < max_keep; chunk += kChunk) {
    const int64_t size = std::min(kChunk, count - chunk), before = columns.size();
    const auto box = [&](int64_t i) { return load_box(boxes + candidates[chunk + i].index * 4); };
    parallel_for(size, size * before < kPairsWorthThreads ? size : 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) dropped[i] = suppressed(columns, 0, before, box(i), threshold);
    });
    for (int64_t i = 0; i < size && columns.size() < max_keep; ++i) {
      if (dropped[i] || suppressed(columns, before, columns.size(), box(i), threshold)) continue;
      columns.push(box(i));
      kept.push_back(candidates[chunk + i]);
    }
  }
  return kept;
}

// Runs task(i) for every segment; `pairs` bounds the comparisons of all segments together.
template <typename F>
void for_segments(int64_t count, int64_t pairs, const F& task) {
  if (count > 1 && pairs >= kPairsWorthThreads) return parallel_tasks(count, task);
  for (int64_t i = 0; i < count; ++i) task(i);  // of a single segment, the threads are suppress()'s
}

}  // namespace
}  // namespace frcnn
