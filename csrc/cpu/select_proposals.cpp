// From the logits and deltas of all levels to each image's proposals. The best anchors of a level are found
// without sorting all: a first pass counts the logits by their upper bits, a second takes the anchors of the
// bins that hold the best. Only what is taken is decoded.
#include <memory>

#include "../score_key.h"
#include "anchors.h"
#include "nms_suppress.h"

namespace frcnn {
namespace {

constexpr int kBinBits = 12, kBins = 1 << kBinBits;
struct Proposal {
  Box<float> box;
  float score;
};

// (key of the logit, anchor) of a level's best anchors, ascending: equal logits by anchor.
std::vector<uint64_t> best_anchors(const FrcnnRPNLevel& level, int64_t image, int64_t per_cell,
                                   int64_t most) {
  const int64_t* const steps = level.logit_strides;
  const int64_t count = level.height * level.width * per_cell;
  const std::unique_ptr<uint32_t[]> orders(new uint32_t[count]);
  std::vector<int64_t> bins(kBins);
  uint32_t* next = orders.get();
  for (int64_t y = 0; y < level.height; ++y) {
    const float* row = level.logits + image * steps[0] + y * steps[2];
    for (int64_t x = 0; x < level.width; ++x) {
      for (int64_t a = 0; a < per_cell; ++a) {
        const float logit = row[x * steps[3] + a * steps[1]];
        const uint32_t order = logit > -INFINITY ? score_key(logit) : kAbsentScore;
        ++bins[order >> (32 - kBinBits)];
        *next++ = order;
      }
    }
  }
  int64_t listed = bins[0];
  uint32_t last = 0;  // absent ones are in the last bin, which no logit reaches
  while (last < kBins - 2 && listed < most) listed += bins[++last];
  const uint32_t limit = (last << (32 - kBinBits)) | ((1u << (32 - kBinBits)) - 1);
  std::vector<uint64_t> best;
  best.reserve(listed);
  for (int64_t i = 0; i < count; ++i) {
    if (orders[i] <= limit) best.push_back(uint64_t{orders[i]} << 32 | static_cast<uint64_t>(i));
  }
  most = std::min(most, static_cast<int64_t>(best.size()));
  std::nth_element(best.begin(), best.begin() + most, best.end());
  best.resize(most);
  std::sort(best.begin(), best.end());
  return best;
}

std::vector<Proposal> proposals_of(const FrcnnProposals& p, int64_t image, int64_t l) {
  const FrcnnRPNLevel& level = p.levels[l];
  const int64_t per_cell = p.grid->num_scales * p.grid->num_ratios;
  const float stride = p.grid->strides[l], least = static_cast<float>(p.min_size);
  const auto base = base_anchors(*p.grid, l);
  const auto unit = stds_of<float>(p.stds);
  const float *size = p.image_sizes + image * 2, *deltas = level.deltas + image * level.delta_strides[0];
  std::vector<Box<float>> boxes;
  std::vector<Candidate<float>> candidates;
  for (const uint64_t key : best_anchors(level, image, per_cell, p.pre_nms)) {
    const int64_t index = static_cast<int64_t>(key & 0xffffffffu);
    const int64_t cell = index / per_cell, a = index % per_cell;
    const int64_t y = cell / level.width, x = cell % level.width, step = level.delta_strides[1];
    const float* d = deltas + a * 4 * step + y * level.delta_strides[2] + x * level.delta_strides[3];
    const Delta<float> delta{d[0], d[step], d[2 * step], d[3 * step]};
    const auto own = shift(base[a], static_cast<float>(x) * stride, static_cast<float>(y) * stride);
    const auto box = clip(decode(own, delta, unit), size[0], size[1]);
    if (!(box.width() > least && box.height() > least)) continue;
    candidates.push_back({0, score_of(static_cast<uint32_t>(key >> 32)), static_cast<int64_t>(boxes.size())});
    boxes.push_back(box);
  }
  std::vector<Proposal> kept;
  const int64_t count = static_cast<int64_t>(boxes.size());
  for (const auto& k : suppress(reinterpret_cast<const float*>(boxes.data()), candidates.data(), count,
                                static_cast<float>(p.iou_threshold), p.count))
    kept.push_back({boxes[k.index], k.score});
  return kept;
}

}  // namespace
}  // namespace frcnn

int64_t frcnn_cpu_select_proposals_workspace(const FrcnnProposals*) { return 0; }

void frcnn_cpu_select_proposals(const FrcnnProposals* proposals, void*, float* boxes, float* scores) {
  using namespace frcnn;
  const FrcnnProposals& p = *proposals;
  const int64_t levels = p.grid->levels;
  std::vector<std::vector<Proposal>> of_level(p.batch * levels);
  parallel_tasks(p.batch * levels, [&](int64_t i) { of_level[i] = proposals_of(p, i / levels, i % levels); });
  for (int64_t image = 0; image < p.batch; ++image) {
    std::vector<Proposal> all;
    for (int64_t l = 0; l < levels; ++l) {
      const auto& own = of_level[image * levels + l];
      all.insert(all.end(), own.begin(), own.end());
    }
    // Equal scores stay in the order of levels, and of anchors within each.
    std::stable_sort(all.begin(), all.end(),
                     [](const Proposal& a, const Proposal& b) { return a.score > b.score; });
    for (int64_t i = 0; i < p.count; ++i) {
      const bool used = i < static_cast<int64_t>(all.size());
      store_box(boxes + (image * p.count + i) * 4, used ? all[i].box : Box<float>{0, 0, 0, 0});
      scores[image * p.count + i] = used ? all[i].score : -INFINITY;
    }
  }
}
