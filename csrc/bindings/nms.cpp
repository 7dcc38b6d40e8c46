// NMS of a segment is one kernel where it fits: on the CPU always, on CUDA in one block. What does not fit is
// sorted first and suppressed in chunks.
#ifdef FRCNN_CUDA
#include <ATen/Functions.h>
#endif

#include "binding.h"

namespace frcnn {
namespace {

#ifdef FRCNN_CUDA

// On the current device.
bool fits(const at::Tensor& boxes, int64_t n) {
  if (boxes.is_cpu()) return true;
  int64_t most = 0;
  expect_launched("nms", frcnn_cuda_nms_block(&most));
  return boxes.scalar_type() == at::kFloat && n <= most;
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

// boxes [N, 4], scores [N], groups [N] or undefined, all contiguous
at::Tensor nms_large(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& groups,
                     double iou_threshold) {
  const int64_t n = boxes.size(0);
  const auto indices_of = boxes.options().dtype(at::kLong);
  // By score, then stably by group; segments are the groups.
  const at::Tensor by_score = best_first(scores);
  FrcnnLargeNms problem{};
  at::Tensor order = by_score, by_group, starts, segment_count;
  if (groups.defined()) {
    const auto sorted = at::sort(groups.index_select(0, by_score), /*stable=*/true, /*dim=*/0,
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
  problem.boxes = boxes.const_data_ptr();
  problem.order = order.const_data_ptr<int64_t>();
  problem.total = problem.n = problem.max_keep = n;
  problem.segments = 1;
  problem.iou_threshold = iou_threshold;
  problem.keep = static_cast<uint8_t*>(keep.mutable_data_ptr());
  suppress_large(boxes, problem);
  if (by_group.defined()) keep = at::empty_like(keep).scatter_(0, by_group, keep);
  return by_score.masked_select(keep);
}

// boxes [S, N, 4], scores [S, N], contiguous
void nms_padded_large(const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold,
                      int64_t max_keep, at::Tensor& indices, at::Tensor& counts) {
  const int64_t segments = boxes.size(0), n = boxes.size(1);
  if (n == 0) {  // there is nothing to sort
    indices.fill_(-1);
    counts.zero_();
    return;
  }
  const at::Tensor first_row = at::arange(segments, counts.options()).mul_(n).unsqueeze_(1);
  const at::Tensor order = best_first(scores).add(first_row);
  FrcnnLargeNms problem{};
  problem.boxes = boxes.const_data_ptr();
  problem.scores = scores.const_data_ptr();
  problem.order = order.const_data_ptr<int64_t>();
  problem.total = segments * n;
  problem.segments = segments;
  problem.n = n;
  problem.iou_threshold = iou_threshold;
  problem.max_keep = max_keep;
  problem.indices = indices.mutable_data_ptr<int64_t>();
  problem.counts = counts.mutable_data_ptr<int64_t>();
  suppress_large(boxes, problem);
}

#endif

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& groups,
               double iou_threshold) {
  const Argument box{"nms", "boxes", boxes}, score{"nms", "scores", scores};
  expect_shape(box, {-1, 4}, "[N, 4]");
  expect_shape(score, {boxes.size(0)}, "[N] with one score per box");
  expect_float(box);
  expect_like(score, box);
  if (groups.has_value()) {
    const Argument group{"nms", "groups", *groups};
    expect_shape(group, {boxes.size(0)}, "[N] with one group per box");
    expect_dtype(group, {at::kLong}, "int64");
    expect_same_device(group, box);
  }
  expect_between("nms", "iou_threshold", iou_threshold, 0, 1);
  const c10::DeviceGuard guard(boxes.device());
  const int64_t n = boxes.size(0);
  const auto indices_of = boxes.options().dtype(at::kLong);
  if (n == 0) return at::empty({0}, indices_of);
  const at::Tensor box_rows = boxes.contiguous(), score_row = scores.contiguous();
  const at::Tensor group_row = contiguous_or_none(groups);
#ifdef FRCNN_CUDA
  if (!fits(boxes, n)) return nms_large(box_rows, score_row, group_row, iou_threshold);
#endif
  at::Tensor indices = at::empty({n}, indices_of), count = at::empty({1}, indices_of);
  at::Tensor memory = workspace(FRCNN_WORKSPACE_OF(nms, boxes.device(), 1, n), boxes);
  FRCNN_RUN(nms, boxes.device(), type_of(boxes), box_rows.const_data_ptr(), score_row.const_data_ptr(),
            pointer_or_null<int64_t>(group_row), 1, n, iou_threshold, n, /*drop_absent=*/false,
            memory.mutable_data_ptr(), indices.mutable_data_ptr<int64_t>(),
            count.mutable_data_ptr<int64_t>());
  return indices.slice(0, 0, count.item<int64_t>());
}

std::tuple<at::Tensor, at::Tensor> nms_padded(const at::Tensor& boxes, const at::Tensor& scores,
                                              double iou_threshold, int64_t max_keep) {
  const Argument box{"nms_padded", "boxes", boxes}, score{"nms_padded", "scores", scores};
  expect_shape(box, {-1, -1, 4}, "[S, N, 4]");
  expect_shape(score, {boxes.size(0), boxes.size(1)}, "[S, N] with one score per box");
  expect_float(box);
  expect_like(score, box);
  expect_between("nms_padded", "iou_threshold", iou_threshold, 0, 1);
  expect_max_keep(max_keep);
  expect_elements("nms_padded", "the result", {boxes.size(0), max_keep});
  const c10::DeviceGuard guard(boxes.device());
  const int64_t segments = boxes.size(0), n = boxes.size(1);
  const at::Tensor box_rows = boxes.contiguous(), score_rows = scores.contiguous();
  at::Tensor indices = at::empty({segments, max_keep}, boxes.options().dtype(at::kLong));
  at::Tensor counts = at::empty({segments}, boxes.options().dtype(at::kLong));
#ifdef FRCNN_CUDA
  if (!fits(boxes, n)) {
    nms_padded_large(box_rows, score_rows, iou_threshold, max_keep, indices, counts);
    return {indices, counts};
  }
#endif
  at::Tensor memory = workspace(FRCNN_WORKSPACE_OF(nms, boxes.device(), segments, n), boxes);
  FRCNN_RUN(nms, boxes.device(), type_of(boxes), box_rows.const_data_ptr(), score_rows.const_data_ptr(),
            nullptr, segments, n, iou_threshold, max_keep, /*drop_absent=*/true, memory.mutable_data_ptr(),
            indices.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>());
  return {indices, counts};
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // boxes [N, 4], scores [N], groups int64 [N]: boxes of different groups never suppress each other
  // -> kept indices int64, best first; equal scores keep the lower index first; suppressed if IoU > threshold
  define(m, "nms(Tensor boxes, Tensor scores, Tensor? groups, float iou_threshold) -> Tensor", &nms);
  // boxes [S, N, 4], scores [S, N] (-inf marks an absent box) -> indices int64 [S, max_keep] best first and
  // padded with -1, counts int64 [S]; no data-dependent shape, no synchronization
  define(m, "nms_padded(Tensor boxes, Tensor scores, float iou_threshold, int max_keep) -> (Tensor, Tensor)",
         &nms_padded);
}

}  // namespace
}  // namespace frcnn
