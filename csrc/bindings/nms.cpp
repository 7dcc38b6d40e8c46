// NMS of a segment is one kernel where it fits: on the CPU always, on CUDA in one block. What does not fit is
// sorted first and suppressed in chunks.
#include "binding.h"

namespace frcnn {
namespace {

#ifdef FRCNN_CUDA

// The keys in ascending order, and their places before.
std::array<Tensor, 2> sorted_stably(const Tensor& keys) {
  return aten<2>("aten::sort", "stable", keys, std::optional<bool>(true), int64_t{-1}, false);
}

// On the current device.
bool fits(const Tensor& boxes, int64_t n) {
  if (boxes.is_cpu()) return true;
  int64_t most = 0;
  expect_launched("nms", frcnn_cuda_nms_block(&most));
  return boxes.scalar_type() == ScalarType::Float && n <= most;
}

// Rows of scores [..., N] from the best to the worst, NaN last, the lower index first among equals.
Tensor best_first(const Tensor& scores) {
  const bool wide = scores.scalar_type() == ScalarType::Double;
  Tensor keys = empty(scores.sizes(), wide ? ScalarType::Long : ScalarType::Int, scores.device());
  expect_launched("nms", frcnn_cuda_nms_keys(type_of(scores), scores.const_data_ptr(), scores.numel(),
                                             keys.mutable_data_ptr(), stream()));
  return sorted_stably(keys)[1];
}

void suppress_large(const Tensor& boxes, const FrcnnLargeNms& problem) {
  const Tensor memory = workspace(frcnn_cuda_nms_large_workspace(type_of(boxes), problem.total), boxes);
  expect_launched("nms", frcnn_cuda_nms_large(type_of(boxes), &problem, memory.mutable_data_ptr(), stream()));
}

// boxes [N, 4], scores [N], groups [N] or none, all contiguous
Tensor nms_large(const Tensor& boxes, const Tensor& scores, const OptionalTensor& groups,
                 double iou_threshold) {
  const int64_t n = boxes.size(0);
  const Device device = boxes.device();
  // By score, then stably by group; segments are the groups.
  const Tensor by_score = best_first(scores);
  FrcnnLargeNms problem{};
  Tensor order = by_score, by_group, starts, segment_count;
  if (groups) {
    const Tensor group_of = aten<1>("aten::index_select", "", *groups, int64_t{0}, by_score)[0];
    const auto by_id = sorted_stably(group_of);
    const Tensor& sorted = by_id[0];
    by_group = by_id[1];
    order = aten<1>("aten::index_select", "", by_score, int64_t{0}, by_group)[0];
    // 1 where a group begins; their running sum counts the groups
    const Tensor changes = torch::stable::full({n}, 1.0, ScalarType::Long, std::nullopt, device);
    const auto part = [n](Tensor of, int64_t first) { return torch::stable::narrow(of, 0, first, n - 1); };
    Tensor inside = part(changes, 1);
    torch::stable::copy_(inside, aten<1>("aten::ne", "Tensor", part(sorted, 1), part(sorted, 0))[0]);
    const Tensor ids = aten<1>("aten::cumsum", "", changes, int64_t{0}, std::optional<ScalarType>())[0];
    starts = empty({n + 1}, ScalarType::Long, device);
    segment_count = empty({1}, ScalarType::Long, device);
    expect_launched(
        "nms", frcnn_cuda_nms_segments(ids.const_data_ptr<int64_t>(), n, starts.mutable_data_ptr<int64_t>(),
                                       segment_count.mutable_data_ptr<int64_t>(), stream()));
    problem.starts = starts.const_data_ptr<int64_t>();
    problem.segment_count = segment_count.const_data_ptr<int64_t>();
  }
  Tensor keep = empty({n}, ScalarType::Bool, device);
  problem.boxes = boxes.const_data_ptr();
  problem.order = order.const_data_ptr<int64_t>();
  problem.total = problem.n = problem.max_keep = n;
  problem.segments = 1;
  problem.iou_threshold = iou_threshold;
  problem.keep = static_cast<uint8_t*>(keep.mutable_data_ptr());
  suppress_large(boxes, problem);
  if (groups) keep = aten<1>("aten::scatter", "src", keep, int64_t{0}, by_group, keep)[0];
  return aten<1>("aten::masked_select", "", by_score, keep)[0];
}

// boxes [S, N, 4], scores [S, N], contiguous
void nms_padded_large(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t max_keep,
                      Tensor& indices, Tensor& counts) {
  const int64_t segments = boxes.size(0), n = boxes.size(1);
  if (n == 0) {  // there is nothing to sort
    torch::stable::fill_(indices, -1);
    torch::stable::zero_(counts);
    return;
  }
  const Tensor order = best_first(scores);
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

Tensor nms(const Tensor& boxes, const Tensor& scores, const OptionalTensor& groups, double iou_threshold) {
  const Argument box{"nms", "boxes", boxes}, score{"nms", "scores", scores};
  expect_shape(box, {-1, 4}, "[N, 4]");
  expect_shape(score, {boxes.size(0)}, "[N] with one score per box");
  expect_float(box);
  expect_like(score, box);
  if (groups.has_value()) {
    const Argument group{"nms", "groups", *groups};
    expect_shape(group, {boxes.size(0)}, "[N] with one group per box");
    expect_dtype(group, {ScalarType::Long}, "int64");
    expect_same_device(group, box);
  }
  expect_between("nms", "iou_threshold", iou_threshold, 0, 1);
  const OnDevice guard(boxes.device());
  const int64_t n = boxes.size(0);
  if (n == 0) return empty({0}, ScalarType::Long, boxes.device());
  const Tensor box_rows = contiguous(boxes), score_row = contiguous(scores);
  const OptionalTensor group_row = contiguous_or_none(groups);
#ifdef FRCNN_CUDA
  if (!fits(boxes, n)) return nms_large(box_rows, score_row, group_row, iou_threshold);
#endif
  Tensor indices = empty({n}, ScalarType::Long, boxes.device());
  const Tensor count = empty({1}, ScalarType::Long, boxes.device());
  const Tensor memory = workspace(FRCNN_WORKSPACE_OF(nms, boxes.device(), 1, n), boxes);
  FRCNN_RUN(nms, boxes.device(), type_of(boxes), box_rows.const_data_ptr(), score_row.const_data_ptr(),
            pointer_or_null<int64_t>(group_row), 1, n, iou_threshold, n, /*drop_absent=*/false,
            memory.mutable_data_ptr(), indices.mutable_data_ptr<int64_t>(),
            count.mutable_data_ptr<int64_t>());
  int64_t kept = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(count.get(), &kept));
  return torch::stable::narrow(indices, 0, 0, kept);
}

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                                      int64_t max_keep) {
  const Argument box{"nms_padded", "boxes", boxes}, score{"nms_padded", "scores", scores};
  expect_shape(box, {-1, -1, 4}, "[S, N, 4]");
  expect_shape(score, {boxes.size(0), boxes.size(1)}, "[S, N] with one score per box");
  expect_float(box);
  expect_like(score, box);
  expect_between("nms_padded", "iou_threshold", iou_threshold, 0, 1);
  expect_max_keep(max_keep);
  expect_elements("nms_padded", "the result", {boxes.size(0), max_keep});
  const OnDevice guard(boxes.device());
  const int64_t segments = boxes.size(0), n = boxes.size(1);
  const Tensor box_rows = contiguous(boxes), score_rows = contiguous(scores);
  Tensor indices = empty({segments, max_keep}, ScalarType::Long, boxes.device());
  Tensor counts = empty({segments}, ScalarType::Long, boxes.device());
#ifdef FRCNN_CUDA
  if (!fits(boxes, n)) {
    nms_padded_large(box_rows, score_rows, iou_threshold, max_keep, indices, counts);
    return {indices, counts};
  }
#endif
  Tensor memory = workspace(FRCNN_WORKSPACE_OF(nms, boxes.device(), segments, n), boxes);
  FRCNN_RUN(nms, boxes.device(), type_of(boxes), box_rows.const_data_ptr(), score_rows.const_data_ptr(),
            nullptr, segments, n, iou_threshold, max_keep, /*drop_absent=*/true, memory.mutable_data_ptr(),
            indices.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>());
  return {indices, counts};
}

}  // namespace

// boxes [N, 4], scores [N], groups int64 [N]: boxes of different groups never suppress each other
// -> kept indices int64, best first; equal scores keep the lower index first; suppressed if IoU > threshold
FRCNN_OPERATOR(nms, "nms(Tensor boxes, Tensor scores, Tensor? groups, float iou_threshold) -> Tensor")
// boxes [S, N, 4], scores [S, N] (-inf marks an absent box) -> indices int64 [S, max_keep] best first and
// padded with -1, counts int64 [S]; no data-dependent shape, no synchronization
FRCNN_OPERATOR(
    nms_padded,
    "nms_padded(Tensor boxes, Tensor scores, float iou_threshold, int max_keep) -> (Tensor, Tensor)")

}  // namespace frcnn
