#include <algorithm>

#include "binding.h"

namespace frcnn {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_proposals(const Tensor& proposals, const Tensor& scores,
                                                            const Tensor& gt_index, const Tensor& gts,
                                                            const Tensor& gt_labels, const Tensor& gt_counts,
                                                            const Tensor& seed, int64_t samples,
                                                            int64_t most_positive, int64_t background) {
  const char* op = "sample_proposals";
  const Argument proposal{op, "proposals", proposals}, score{op, "scores", scores},
      assigned{op, "gt_index", gt_index}, gt{op, "gts", gts}, label{op, "gt_labels", gt_labels},
      count{op, "gt_counts", gt_counts};
  expect_shape(proposal, {-1, -1, 4}, "[B, P, 4]");
  const int64_t batch = proposals.size(0), p = proposals.size(1);
  expect_shape(gt, {batch, -1, 4}, "[B, G, 4] with the B of proposals");
  const int64_t g = gts.size(1);
  expect_shape(score, {batch, p}, "[B, P] with one score per proposal");
  expect_shape(assigned, {batch, p}, "[B, P] with one index per proposal");
  expect_shape(label, {batch, g}, "[B, G] with one label per gt");
  expect_shape(count, {batch}, "[B] with one count per image");
  expect_dtype(proposal, {ScalarType::Float}, "float32");
  for (const Argument& a : {score, gt}) expect_like(a, proposal);
  for (const Argument& a : {assigned, label, count}) {
    expect_dtype(a, {ScalarType::Long}, "int64");
    expect_same_device(a, proposal);
  }
  expect_seed(op, seed, proposal);
  expect_samples(op, samples, most_positive);
  FRCNN_CHECK(g + p <= kMostAlongOne, op, ": gts and proposals are ", g + p,
              " candidates per image, expected ", "at most ", kMostAlongOne);
  const int64_t slots = std::min(samples, g + p);
  expect_elements(op, "the result", {batch, slots, 5});
  const Device device = proposals.device();
  expect_images(op, device, batch);
  const OnDevice guard(device);
  const Tensor rows[] = {contiguous(proposals), contiguous(scores),    contiguous(gt_index),
                         contiguous(gts),       contiguous(gt_labels), contiguous(gt_counts)};
  FrcnnCandidates candidates{};
  candidates.proposals = rows[0].const_data_ptr<float>();
  candidates.scores = rows[1].const_data_ptr<float>();
  candidates.gt_index = rows[2].const_data_ptr<int64_t>();
  candidates.gts = rows[3].const_data_ptr<float>();
  candidates.labels = rows[4].const_data_ptr<int64_t>();
  candidates.counts = rows[5].const_data_ptr<int64_t>();
  candidates.batch = batch;
  candidates.p = p;
  candidates.g = g;
  candidates.background = background;
  Tensor rois = empty({batch, slots, 5}, proposals), labels = empty({batch, slots}, gt_index);
  Tensor targets = empty({batch, slots, 4}, proposals), counts = empty({batch, 2}, gt_index);
  const Tensor memory = workspace(FRCNN_WORKSPACE_OF(sample_proposals, device, &candidates), proposals);
  FRCNN_RUN(sample_proposals, device, &candidates, seed.const_data_ptr<int64_t>(), slots, most_positive,
            memory.mutable_data_ptr(), rois.mutable_data_ptr<float>(), labels.mutable_data_ptr<int64_t>(),
            targets.mutable_data_ptr<float>(), counts.mutable_data_ptr<int64_t>());
  return {rois, labels, targets, counts};
}

}  // namespace

// proposals [B, P, 4], scores [B, P], gts [B, G, 4] float32, gt_index [B, P], gt_labels [B, G], gt_counts
// [B] int64, seed int64 [] -> S = min(samples, G + P) of each image: rois [B, S, 5], labels int64 [B, S],
// targets [B, S, 4], counts int64 [B, 2] of positives and negatives, which come in this order
FRCNN_OPERATOR(
    sample_proposals,
    "sample_proposals(Tensor proposals, Tensor scores, Tensor gt_index, Tensor gts, Tensor gt_labels, "
    "Tensor gt_counts, Tensor seed, int samples, int most_positive, int background) "
    "-> (Tensor, Tensor, Tensor, Tensor)")

}  // namespace frcnn
