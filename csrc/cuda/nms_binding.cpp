// nms and nms_padded for torch: in one block per segment where it fits, sorted and in chunks where not.
#include "binding.h"

namespace frcnn {
namespace {

bool fits_one_block(const at::Tensor& boxes, int64_t n) {
  return boxes.scalar_type() == at::kFloat && n <= kFrcnnNmsBlock;
}

// Rows of scores [..., N] from the best to the worst, NaN last, the lower index first among equals.
at::Tensor best_first(const at::Tensor& scores) {
  const bool wide = scores.scalar_type() == at::kDouble;
  at::Tensor keys = at::empty(scores.sizes(), scores.options().dtype(wide ? at::kLong : at::kInt));
  expect_launched("nms", frcnn_cuda_nms_keys(type_of(scores), scores.const_data_ptr(), scores.numel(),
                                             keys.mutable_data_ptr(), stream()));
  return std::get<1>(at::sort(keys, /*stable=*/true, /*dim=*/-1, /*descending=*/false));
}

void suppress_large(const at::Tensor& boxes, const FrcnnLargeNms& problem) {
  const at::Tensor memory = workspace(frcnn_cuda_nms_large_workspace(type_of(boxes), problem.total), boxes);
  expect_launched("nms", frcnn_cuda_nms_large(type_of(boxes), &problem, memory.mutable_data_ptr(), stream()));
}

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& groups,
               double iou_threshold) {
  check_nms(boxes, scores, groups, iou_threshold);
  const CUDAGuard guard(boxes.device());
  const int64_t n = boxes.size(0);
  const auto indices_of = boxes.options().dtype(at::kLong);
  if (n == 0) return at::empty({0}, indices_of);
  const at::Tensor box_rows = boxes.contiguous(), score_row = scores.contiguous();
  const at::Tensor group_row = contiguous_or_none(groups);
  if (fits_one_block(boxes, n)) {
    at::Tensor indices = at::empty({n}, indices_of), count = at::empty({1}, indices_of);
    expect_launched(
        "nms",
        frcnn_cuda_nms_block(box_rows.const_data_ptr<float>(), score_row.const_data_ptr<float>(),
                             static_cast<const int64_t*>(pointer_or_null(group_row)), 1, n, iou_threshold, n,
                             /*drop_absent=*/false, indices.mutable_data_ptr<int64_t>(),
                             count.mutable_data_ptr<int64_t>(), stream()));
    return indices.slice(0, 0, count.item<int64_t>());
  }

  // By score, then stably by group; segments are the groups.
  const at::Tensor by_score = best_first(score_row);
  FrcnnLargeNms problem{};
  at::Tensor order = by_score, by_group, starts, segment_count;
  if (group_row.defined()) {
    const auto sorted = at::sort(group_row.index_select(0, by_score), /*stable=*/true, /*dim=*/0,
                                 /*descending=*/false);
    const at::Tensor sorted_groups = std::get<0>(sorted);
    by_group = std::get<1>(sorted);
    order = by_score.index_select(0, by_group);
    at::Tensor changes = at::ones({n}, indices_of);
    changes.slice(0, 1).copy_(sorted_groups.slice(0, 1).ne(sorted_groups.slice(0, 0, n - 1)));
    const at::Tensor ids = changes.cumsum(0);
    starts = at::empty({n + 1}, indices_of);
    segment_count = at::empty({1}, indices_of);
    expect_launched(
        "nms", frcnn_cuda_nms_segments(ids.const_data_ptr<int64_t>(), n, starts.mutable_data_ptr<int64_t>(),
                                       segment_count.mutable_data_ptr<int64_t>(), stream()));
    problem.starts = starts.const_data_ptr<int64_t>();
    problem.segment_count = segment_count.const_data_ptr<int64_t>();
  }
  at::Tensor keep = at::empty({n}, boxes.options().dtype(at::kBool));
  problem.boxes = box_rows.const_data_ptr();
  problem.order = order.const_data_ptr<int64_t>();
  problem.total = problem.n = problem.max_keep = n;
  problem.segments = 1;
  problem.iou_threshold = iou_threshold;
  problem.keep = static_cast<uint8_t*>(keep.mutable_data_ptr());
  suppress_large(boxes, problem);
  if (by_group.defined()) keep = at::empty_like(keep).scatter_(0, by_group, keep);
  return by_score.masked_select(keep);
}

std::tuple<at::Tensor, at::Tensor> nms_padded(const at::Tensor& boxes, const at::Tensor& scores,
                                              double iou_threshold, int64_t max_keep) {
  check_nms_padded(boxes, scores, iou_threshold, max_keep);
  const CUDAGuard guard(boxes.device());
  const int64_t segments = boxes.size(0), n = boxes.size(1);
  const at::Tensor box_rows = boxes.contiguous(), score_rows = scores.contiguous();
  at::Tensor indices = at::empty({segments, max_keep}, boxes.options().dtype(at::kLong));
  at::Tensor counts = at::empty({segments}, boxes.options().dtype(at::kLong));
  if (fits_one_block(boxes, n)) {
    expect_launched(
        "nms", frcnn_cuda_nms_block(box_rows.const_data_ptr<float>(), score_rows.const_data_ptr<float>(),
                                    nullptr, segments, n, iou_threshold, max_keep, /*drop_absent=*/true,
                                    indices.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>(),
                                    stream()));
    return {indices, counts};
  }
  if (n == 0) return {indices.fill_(-1), counts.zero_()};  // float64; there is nothing to sort
  const at::Tensor first_row = at::arange(segments, counts.options()).mul_(n).unsqueeze_(1);
  const at::Tensor order = best_first(score_rows).add(first_row);
  FrcnnLargeNms problem{};
  problem.boxes = box_rows.const_data_ptr();
  problem.scores = score_rows.const_data_ptr();
  problem.order = order.const_data_ptr<int64_t>();
  problem.total = segments * n;
  problem.segments = segments;
  problem.n = n;
  problem.iou_threshold = iou_threshold;
  problem.max_keep = max_keep;
  problem.indices = indices.mutable_data_ptr<int64_t>();
  problem.counts = counts.mutable_data_ptr<int64_t>();
  suppress_large(boxes, problem);
  return {indices, counts};
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CUDA, m) {
  m.impl("nms", &nms);
  m.impl("nms_padded", &nms_padded);
}

}  // namespace frcnn
