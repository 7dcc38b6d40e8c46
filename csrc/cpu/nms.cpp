// Greedy non-maximum suppression on CPU.
//
// Boxes are visited best first and compared with the boxes kept so far only, so neither time nor memory goes
// to an N x N matrix. Kept boxes are stored by coordinate, so one candidate meets a vector of them at a time.
// Groups are separate problems, run in parallel; they are told apart by their ids, not by shifting
// coordinates, which would cost precision. A box is suppressed if inter / union > threshold, as box_iou()
// computes it: exact ties with the threshold survive.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../box.h"
#include "../checks.h"
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
FRCNN_VECTORIZED bool suppressed(const BoxColumns<double>& kept, int64_t begin, int64_t end,
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
    at::parallel_for(0, size, size * before < kPairsWorthThreads ? size : 1, [&](int64_t begin, int64_t end) {
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

// Runs task(i) for every segment; a free thread takes the next one, since segments differ in size.
// `pairs` bounds the comparisons of all segments together.
template <typename F>
void parallel_segments(int64_t count, int64_t pairs, const F& task) {
  if (count <= 1 || pairs < kPairsWorthThreads) {  // one segment: the threads are suppress()'s
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

template <typename T>
std::vector<Candidate<T>> grouped_nms(const T* boxes, const T* scores, const int64_t* groups, int64_t count,
                                      T threshold) {
  std::vector<Candidate<T>> candidates(count);
  for (int64_t i = 0; i < count; ++i) candidates[i] = {groups ? groups[i] : 0, scores[i], i};
  std::sort(candidates.begin(), candidates.end(), [](const Candidate<T>& a, const Candidate<T>& b) {
    return a.group != b.group ? a.group < b.group : better(a, b);
  });
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || candidates[i].group != candidates[i - 1].group) starts.push_back(i);
  }
  starts.push_back(count);
  const int64_t segments = static_cast<int64_t>(starts.size()) - 1;
  int64_t pairs = 0;
  for (int64_t s = 0; s < segments; ++s)
    pairs += (starts[s + 1] - starts[s]) * (starts[s + 1] - starts[s]) / 2;
  std::vector<std::vector<Candidate<T>>> kept(segments);
  parallel_segments(segments, pairs, [&](int64_t s) {
    const int64_t size = starts[s + 1] - starts[s];
    kept[s] = suppress(boxes, candidates.data() + starts[s], size, threshold, size);
  });
  std::vector<Candidate<T>> merged;
  for (const auto& segment : kept) merged.insert(merged.end(), segment.begin(), segment.end());
  if (segments > 1) std::sort(merged.begin(), merged.end(), better<T>);
  return merged;
}

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& groups,
               double iou_threshold) {
  check_nms(boxes, scores, groups, iou_threshold);
  const at::Tensor box_rows = boxes.contiguous(), score_row = scores.contiguous();
  const at::Tensor group_row = groups.has_value() ? groups->contiguous() : at::Tensor();
  at::Tensor indices;
  AT_DISPATCH_FLOATING_TYPES(boxes.scalar_type(), "nms", [&] {
    const auto kept = grouped_nms(box_rows.const_data_ptr<scalar_t>(), score_row.const_data_ptr<scalar_t>(),
                                  group_row.defined() ? group_row.const_data_ptr<int64_t>() : nullptr,
                                  boxes.size(0), static_cast<scalar_t>(iou_threshold));
    indices = at::empty({static_cast<int64_t>(kept.size())}, boxes.options().dtype(at::kLong));
    int64_t* out = indices.mutable_data_ptr<int64_t>();
    for (const auto& candidate : kept) *out++ = candidate.index;
  });
  return indices;
}

std::tuple<at::Tensor, at::Tensor> nms_padded(const at::Tensor& boxes, const at::Tensor& scores,
                                              double iou_threshold, int64_t max_keep) {
  check_nms_padded(boxes, scores, iou_threshold, max_keep);
  const int64_t segments = boxes.size(0), count = boxes.size(1);
  const at::Tensor box_rows = boxes.contiguous(), score_rows = scores.contiguous();
  at::Tensor indices = at::full({segments, max_keep}, -1, boxes.options().dtype(at::kLong));
  at::Tensor counts = at::zeros({segments}, boxes.options().dtype(at::kLong));
  int64_t* out = indices.mutable_data_ptr<int64_t>();
  int64_t* out_counts = counts.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(boxes.scalar_type(), "nms_padded", [&] {
    const scalar_t* box = box_rows.const_data_ptr<scalar_t>();
    const scalar_t* score = score_rows.const_data_ptr<scalar_t>();
    parallel_segments(segments, product({segments, count, count}) / 2, [&](int64_t s) {
      std::vector<Candidate<scalar_t>> candidates;
      for (int64_t i = 0; i < count; ++i) {
        const scalar_t value = score[s * count + i];
        if (value != -std::numeric_limits<scalar_t>::infinity()) candidates.push_back({s, value, i});
      }
      std::sort(candidates.begin(), candidates.end(), better<scalar_t>);
      const auto kept =
          suppress(box + s * count * 4, candidates.data(), static_cast<int64_t>(candidates.size()),
                   static_cast<scalar_t>(iou_threshold), max_keep);
      for (size_t i = 0; i < kept.size(); ++i) out[s * max_keep + i] = kept[i].index;
      out_counts[s] = static_cast<int64_t>(kept.size());
    });
  });
  return {indices, counts};
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CPU, m) {
  m.impl("nms", &nms);
  m.impl("nms_padded", &nms_padded);
}

}  // namespace frcnn
