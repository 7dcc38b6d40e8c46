// The best detections of an image: threshold, decode, NMS within each class, the best of all classes. Only
// what passes the threshold is decoded: of 1000 proposals times 80 classes, a few hundred.
#include "../selection.h"
#include "nms_suppress.h"

namespace frcnn {
namespace {

struct Detection {
  Box<float> box;
  float score;
  int64_t label, row;
};

// Equal scores come out in the same order on every device: by proposal, then by class.
bool before(const Detection& a, const Detection& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.row != b.row ? a.row < b.row : a.label < b.label;
}

std::vector<Detection> detections_of(const FrcnnSelection& s, int64_t image) {
  const int64_t count = s.proposals_per_image, columns = s.classes + 1;
  const float threshold = static_cast<float>(s.score_threshold);
  const auto stds = stds_of<float>(s.stds);
  std::vector<std::vector<Candidate<float>>> wanted(s.classes);
  for (int64_t row = 0; row < count; ++row) {
    if (!s.present[image * count + row]) continue;
    const float* own = s.probabilities + (image * count + row) * columns;
    for (int64_t label = 0; label < s.classes; ++label) {
      if (own[label] > threshold) wanted[label].push_back({0, own[label], row});
    }
  }
  std::vector<Detection> found;
  std::vector<Box<float>> boxes;
  for (int64_t label = 0; label < s.classes; ++label) {
    auto& own = wanted[label];
    std::sort(own.begin(), own.end(), better<float>);
    boxes.clear();
    std::vector<int64_t> rows;
    for (auto& candidate : own) {
      rows.push_back(candidate.index);
      boxes.push_back(detected_box(s, stds, image, candidate.index, label));
      candidate.index = static_cast<int64_t>(boxes.size()) - 1;
    }
    const auto kept =
        suppress(reinterpret_cast<const float*>(boxes.data()), own.data(), static_cast<int64_t>(own.size()),
                 static_cast<float>(s.iou_threshold), s.max_detections);
    for (const auto& k : kept) found.push_back({boxes[k.index], k.score, label, rows[k.index]});
  }
  const int64_t most = std::min<int64_t>(s.max_detections, static_cast<int64_t>(found.size()));
  std::partial_sort(found.begin(), found.begin() + most, found.end(), before);
  found.resize(most);
  return found;
}

}  // namespace
}  // namespace frcnn

int64_t frcnn_cpu_select_detections_workspace(const FrcnnSelection*) { return 0; }

void frcnn_cpu_select_detections(const FrcnnSelection* selection, void*, float* boxes, float* scores,
                                 int64_t* labels, int64_t* rows, int64_t* counts) {
  using namespace frcnn;
  const int64_t most = selection->max_detections;
  parallel_for(selection->images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const auto found = detections_of(*selection, image);
      counts[image] = static_cast<int64_t>(found.size());
      for (int64_t i = 0; i < most; ++i) {
        const int64_t out = image * most + i;
        const Detection d = i < counts[image] ? found[i] : Detection{{0, 0, 0, 0}, 0, -1, -1};
        store_box(boxes + out * 4, d.box);
        scores[out] = d.score;
        labels[out] = d.label;
        rows[out] = d.row;
      }
    }
  });
}
