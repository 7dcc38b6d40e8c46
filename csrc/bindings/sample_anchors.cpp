#include <algorithm>

#include "binding.h"

namespace frcnn {
namespace {

std::tuple<Tensor, Tensor> sample_anchors(const Tensor& gt_index, const Tensor& seed, int64_t samples,
                                          int64_t most_positive) {
  const char* op = "sample_anchors";
  const Argument assigned{op, "gt_index", gt_index};
  expect_shape(assigned, {-1, -1}, "[B, N]");
  expect_dtype(assigned, {ScalarType::Long}, "int64");
  expect_seed(op, seed, assigned);
  expect_samples(op, samples, most_positive);
  const int64_t batch = gt_index.size(0), n = gt_index.size(1), slots = std::min(samples, n);
  const Device device = gt_index.device();
  expect_images(op, device, batch);
  const OnDevice guard(device);
  const Tensor rows = contiguous(gt_index);
  Tensor index = empty({batch, slots}, rows), counts = empty({batch, 2}, rows);
  const Tensor memory = workspace(FRCNN_WORKSPACE_OF(sample_anchors, device, batch, n), rows);
  FRCNN_RUN(sample_anchors, device, rows.const_data_ptr<int64_t>(), seed.const_data_ptr<int64_t>(), batch, n,
            slots, most_positive, memory.mutable_data_ptr(), index.mutable_data_ptr<int64_t>(),
            counts.mutable_data_ptr<int64_t>());
  return {index, counts};
}

}  // namespace

// gt_index int64 [B, N] as assign_max_iou returns it, seed int64 [] -> index int64 [B, min(samples, N)],
// positives first, then negatives, -1 where unused; counts int64 [B, 2] of both
FRCNN_OPERATOR(
    sample_anchors,
    "sample_anchors(Tensor gt_index, Tensor seed, int samples, int most_positive) -> (Tensor, Tensor)")

}  // namespace frcnn
