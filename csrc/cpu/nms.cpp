// Non-maximum suppression on CPU. Groups are separate problems, run in parallel; they are told apart by their
// ids, not by shifting coordinates, which would cost precision.
#include <limits>

#include "../sizes.h"
#include "nms_suppress.h"

namespace frcnn {
namespace {

template <typename T>
std::vector<Candidate<T>> grouped_nms(const T* boxes, const T* scores, const int64_t* groups, int64_t count,
                                      T threshold) {
  std::vector<Candidate<T>> candidates(count);
  for (int64_t i = 0; i < count; ++i) candidates[i] = {groups[i], scores[i], i};
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
  for_segments(segments, pairs, [&](int64_t s) {
    const int64_t size = starts[s + 1] - starts[s];
    kept[s] = suppress(boxes, candidates.data() + starts[s], size, threshold, size);
  });
  std::vector<Candidate<T>> merged;
  for (const auto& segment : kept) merged.insert(merged.end(), segment.begin(), segment.end());
  if (segments > 1) std::sort(merged.begin(), merged.end(), better<T>);
  return merged;
}

// As grouped_nms for one group, of which at most max_keep are kept.
template <typename T>
std::vector<Candidate<T>> segment_nms(const T* boxes, const T* scores, int64_t count, T threshold,
                                      int64_t max_keep, bool drop_absent) {
  std::vector<Candidate<T>> candidates;
  for (int64_t i = 0; i < count; ++i) {
    const bool absent = drop_absent && scores[i] == -std::numeric_limits<T>::infinity();
    if (!absent) candidates.push_back({0, scores[i], i});
  }
  std::sort(candidates.begin(), candidates.end(), better<T>);
  return suppress(boxes, candidates.data(), static_cast<int64_t>(candidates.size()), threshold, max_keep);
}

}  // namespace
}  // namespace frcnn

int64_t frcnn_cpu_nms_workspace(int64_t, int64_t) { return 0; }

void frcnn_cpu_nms(int64_t type, const void* boxes, const void* scores, const int64_t* groups,
                   int64_t segments, int64_t n, double iou_threshold, int64_t max_keep, bool drop_absent,
                   void*, int64_t* indices, int64_t* counts) {
  using namespace frcnn;
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    const T threshold = static_cast<T>(iou_threshold);
    for_segments(segments, product({segments, n, n}) / 2, [&](int64_t s) {
      const T* own_boxes = static_cast<const T*>(boxes) + s * n * 4;
      const T* own_scores = static_cast<const T*>(scores) + s * n;
      const auto kept = groups ? grouped_nms(own_boxes, own_scores, groups + s * n, n, threshold)
                               : segment_nms(own_boxes, own_scores, n, threshold, max_keep, drop_absent);
      int64_t* out = indices + s * max_keep;
      for (const auto& candidate : kept) *out++ = candidate.index;
      std::fill(out, indices + (s + 1) * max_keep, -1);
      counts[s] = static_cast<int64_t>(kept.size());
    });
  });
}
