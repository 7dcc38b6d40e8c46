// From the logits and deltas of all levels to each image's proposals. The best anchors of a level are found
// without sorting all: a first pass counts the logits by their upper bits, a second takes the anchors of the
// bins that hold the best. Only what is taken is decoded.
#include "anchors.h"
#include "nms_suppress.h"

namespace frcnn {
namespace {

constexpr int kBinBits = 12, kBins = 1 << kBinBits;

struct Anchor {
  uint32_t order;  // ascends from the best logit to the worst
  float logit;
  int64_t index;
};
bool before(const Anchor& a, const Anchor& b) {
  return a.order != b.order ? a.order < b.order : a.index < b.index;
}

struct Proposal {
  Box<float> box;
  float score;
};

uint32_t order_of(float logit) {
  logit = logit == 0.0f ? 0.0f : logit;  // -0 equals 0
  uint32_t bits;
  std::memcpy(&bits, &logit, sizeof(bits));
  return (bits & 0x80000000u) != 0 ? bits : 0x7fffffffu - bits;
}

// Calls f(logit, index) for every anchor of a level that proposes: not for NaN and -inf.
template <typename F>
void for_anchors(const FrcnnRPNLevel& level, int64_t image, int64_t per_cell, const F& f) {
  const int64_t* const steps = level.logit_strides;
  int64_t index = 0;
  for (int64_t y = 0; y < level.height; ++y) {
    const float* row = level.logits + image * steps[0] + y * steps[2];
    for (int64_t x = 0; x < level.width; ++x) {
      for (int64_t a = 0; a < per_cell; ++a, ++index) {
        const float logit = row[x * steps[3] + a * steps[1]];
        if (logit > -INFINITY) f(logit, index);
      }
    }
  }
}

// The best anchors of a level, in order: equal logits by index.
std::vector<Anchor> best_anchors(const FrcnnRPNLevel& level, int64_t image, int64_t per_cell, int64_t most) {
  std::vector<int64_t> bins(kBins);
  for_anchors(level, image, per_cell,
              [&](float logit, int64_t) { ++bins[order_of(logit) >> (32 - kBinBits)]; });
  int64_t listed = 0, last = 0;
  while (last < kBins - 1 && listed + bins[last] < most) listed += bins[last++];
  std::vector<Anchor> best;
  best.reserve(listed + bins[last]);
  for_anchors(level, image, per_cell, [&](float logit, int64_t index) {
    const uint32_t order = order_of(logit);
    if (order >> (32 - kBinBits) <= last) best.push_back({order, logit, index});
  });
  most = std::min(most, static_cast<int64_t>(best.size()));
  std::nth_element(best.begin(), best.begin() + most, best.end(), before);
  best.resize(most);
  std::sort(best.begin(), best.end(), before);
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
  for (const Anchor& anchor : best_anchors(level, image, per_cell, p.pre_nms)) {
    const int64_t cell = anchor.index / per_cell, a = anchor.index % per_cell;
    const int64_t y = cell / level.width, x = cell % level.width, step = level.delta_strides[1];
    const float* d = deltas + a * 4 * step + y * level.delta_strides[2] + x * level.delta_strides[3];
    const Delta<float> delta{d[0], d[step], d[2 * step], d[3 * step]};
    const auto own = shift(base[a], static_cast<float>(x) * stride, static_cast<float>(y) * stride);
    const auto box = clip(decode(own, delta, unit), size[0], size[1]);
    if (!(box.width() > least && box.height() > least)) continue;
    candidates.push_back({0, anchor.logit, static_cast<int64_t>(boxes.size())});
    boxes.push_back(box);
  }
  std::vector<Proposal> kept;
  const int64_t count = static_cast<int64_t>(boxes.size());
  for (const auto& k : suppress(reinterpret_cast<const float*>(boxes.data()), candidates.data(), count,
                                static_cast<float>(p.iou_threshold), p.count))
    kept.push_back({boxes[k.index], k.score == 0.0f ? 0.0f : k.score});
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
