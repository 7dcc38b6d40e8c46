// Registers the CUDA kernels with torch: checks, device guard, outputs and workspace, one or a few launchers
// on the current stream. Everything that knows torch is here; nothing here synchronises, but for the number
// of boxes that the list form of nms returns.
#include <ATen/Functions.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "launchers.h"

namespace frcnn {
namespace {

using c10::cuda::CUDAGuard;

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

int64_t type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return kFrcnnFloat;
    case at::kDouble:
      return kFrcnnDouble;
    case at::kHalf:
      return kFrcnnHalf;
    default:
      return kFrcnnBfloat16;
  }
}

at::Tensor contiguous_or_none(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->contiguous() : at::Tensor();
}
const void* pointer_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}
at::Tensor workspace(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

// A launcher refuses what its 32-bit counters and grids cannot hold, before it launches anything.
void expect_launched(const char* op, cudaError_t error) {
  TORCH_CHECK(error != cudaErrorInvalidValue, op,
              ": the sizes are more than the CUDA kernel counts in 32 bits; "
              "split the call over images or boxes");
  C10_CUDA_CHECK(error);
}

void expect_at_most(const char* op, const char* name, size_t count, size_t most) {
  TORCH_CHECK(count <= most, op, ": ", count, " ", name, " are more than the CUDA kernel takes (", most, ")");
}

// ---- anchors and box coding -------------------------------------------------------------------------------

// The host arrays that FrcnnAnchors points to.
struct AnchorArrays {
  AnchorArrays(const char* op, at::ArrayRef<double> strides, at::ArrayRef<double> scales,
               at::ArrayRef<double> ratios, double center_offset)
      : strides(strides.begin(), strides.end()),
        scales(scales.begin(), scales.end()),
        ratios(ratios.begin(), ratios.end()) {
    expect_at_most(op, "levels", strides.size(), kFrcnnMostLevels);
    expect_at_most(op, "scales", scales.size(), kFrcnnMostShapes);
    expect_at_most(op, "ratios", ratios.size(), kFrcnnMostShapes);
    grid = {this->strides.data(),
            this->scales.data(),
            this->ratios.data(),
            static_cast<int64_t>(strides.size()),
            static_cast<int64_t>(scales.size()),
            static_cast<int64_t>(ratios.size()),
            static_cast<float>(center_offset)};
  }

  std::vector<float> strides, scales, ratios;
  FrcnnAnchors grid;
};

at::Tensor grid_anchors(at::IntArrayRef sizes, at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                        at::ArrayRef<double> ratios, double center_offset, at::Device device) {
  check_grid_anchors(sizes, strides, scales, ratios, center_offset);
  const CUDAGuard guard(device);
  const AnchorArrays arrays("grid_anchors", strides, scales, ratios, center_offset);
  int64_t count = 0;
  for (size_t l = 0; l < strides.size(); ++l) count += sizes[2 * l] * sizes[2 * l + 1];
  count *= static_cast<int64_t>(scales.size() * ratios.size());
  at::Tensor anchors = at::empty({count, 4}, at::TensorOptions().dtype(at::kFloat).device(device));
  expect_launched("grid_anchors", frcnn_cuda_grid_anchors(&arrays.grid, sizes.data(),
                                                          anchors.mutable_data_ptr<float>(), stream()));
  return anchors;
}

at::Tensor box_iou(const at::Tensor& a, const at::Tensor& b) {
  check_box_iou(a, b);
  const CUDAGuard guard(a.device());
  const at::Tensor a_rows = a.contiguous(), b_rows = b.contiguous();
  at::Tensor out = at::empty({a.size(0), b.size(0)}, a.options());
  expect_launched("box_iou", frcnn_cuda_box_iou(type_of(a), a_rows.const_data_ptr(), b_rows.const_data_ptr(),
                                                a.size(0), b.size(0), out.mutable_data_ptr(), stream()));
  return out;
}

at::Tensor encode_boxes(const at::Tensor& boxes, const at::Tensor& targets, at::ArrayRef<double> stds) {
  check_encode_boxes(boxes, targets, stds);
  const CUDAGuard guard(boxes.device());
  const at::Tensor box_rows = boxes.contiguous(), target_rows = targets.contiguous();
  at::Tensor deltas = at::empty_like(box_rows);
  expect_launched("encode_boxes", frcnn_cuda_encode_boxes(
                                      type_of(boxes), box_rows.const_data_ptr(), target_rows.const_data_ptr(),
                                      stds.data(), boxes.size(0), deltas.mutable_data_ptr(), stream()));
  return deltas;
}

const int64_t* data_or_null(at::OptionalIntArrayRef values) {
  return values.has_value() ? values->data() : nullptr;
}

at::Tensor decode_boxes(const at::Tensor& boxes, const at::Tensor& deltas, at::ArrayRef<double> stds,
                        at::OptionalIntArrayRef max_shape) {
  check_decode_boxes(boxes, deltas, stds, max_shape);
  const CUDAGuard guard(boxes.device());
  const at::Tensor box_rows = boxes.contiguous(), delta_rows = deltas.contiguous();
  at::Tensor decoded = at::empty_like(delta_rows);
  expect_launched("decode_boxes", frcnn_cuda_decode_boxes(
                                      type_of(boxes), box_rows.const_data_ptr(), delta_rows.const_data_ptr(),
                                      stds.data(), data_or_null(max_shape), boxes.size(0), deltas.size(1) / 4,
                                      decoded.mutable_data_ptr(), stream()));
  return decoded;
}

at::Tensor decode_boxes_backward(const at::Tensor& grad, const at::Tensor& boxes, const at::Tensor& deltas,
                                 at::ArrayRef<double> stds, at::OptionalIntArrayRef max_shape) {
  check_decode_boxes_backward(grad, boxes, deltas, stds, max_shape);
  const CUDAGuard guard(boxes.device());
  const at::Tensor grad_rows = grad.contiguous(), box_rows = boxes.contiguous(),
                   delta_rows = deltas.contiguous();
  at::Tensor result = at::empty_like(delta_rows);
  expect_launched("decode_boxes_backward",
                  frcnn_cuda_decode_boxes_backward(type_of(boxes), grad_rows.const_data_ptr(),
                                                   box_rows.const_data_ptr(), delta_rows.const_data_ptr(),
                                                   stds.data(), data_or_null(max_shape), boxes.size(0),
                                                   deltas.size(1) / 4, result.mutable_data_ptr(), stream()));
  return result;
}

std::tuple<at::Tensor, at::Tensor> decode_proposals(at::TensorList deltas, at::TensorList indices,
                                                    const at::Tensor& image_sizes,
                                                    at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                                                    at::ArrayRef<double> ratios, double center_offset,
                                                    at::ArrayRef<double> stds, double min_size) {
  check_decode_proposals(deltas, indices, image_sizes, strides, scales, ratios, center_offset, stds,
                         min_size);
  const CUDAGuard guard(image_sizes.device());
  const AnchorArrays arrays("decode_proposals", strides, scales, ratios, center_offset);
  const at::Tensor sizes = image_sizes.contiguous();
  const int64_t batch = sizes.size(0);
  std::vector<at::Tensor> index_rows;
  std::vector<FrcnnProposalLevel> levels;
  int64_t rows = 0;
  for (size_t l = 0; l < deltas.size(); ++l) {
    const at::Tensor& d = deltas[l];
    index_rows.push_back(indices[l].contiguous());
    levels.push_back({d.const_data_ptr(), index_rows[l].const_data_ptr<int64_t>(), d.size(2), d.size(3),
                      indices[l].size(1), d.stride(0), d.stride(1), d.stride(2), d.stride(3)});
    rows += indices[l].size(1);
  }
  at::Tensor boxes = at::empty({batch, rows, 4}, sizes.options());
  at::Tensor valid = at::empty({batch, rows}, sizes.options().dtype(at::kBool));
  expect_launched(
      "decode_proposals",
      frcnn_cuda_decode_proposals(type_of(deltas[0]), &arrays.grid, levels.data(),
                                  sizes.const_data_ptr<float>(), batch, stds.data(), min_size,
                                  boxes.mutable_data_ptr<float>(), valid.mutable_data_ptr<bool>(), stream()));
  return {boxes, valid};
}

// ---- RoIAlign ---------------------------------------------------------------------------------------------

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

void expect_pooling_fits(const char* op, size_t levels, int64_t height, int64_t width) {
  expect_at_most(op, "levels", levels, kFrcnnMostLevels);
  TORCH_CHECK(height + width <= kFrcnnMostBins, op, ": output_size (", height, ", ", width,
              ") is larger than the CUDA kernel takes (height + width at most ", int{kFrcnnMostBins}, ")");
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, at::IntArrayRef output_size,
                     at::ArrayRef<double> scales, int64_t sampling_ratio, bool aligned, double finest_scale) {
  check_roi_align(features, rois, output_size, scales, sampling_ratio, finest_scale);
  expect_pooling_fits("roi_align", features.size(), output_size[0], output_size[1]);
  const at::Tensor& first = features[0];
  const CUDAGuard guard(first.device());
  const bool channels_last = first.is_contiguous(kChannelsLast) && !first.is_contiguous();
  const auto format = channels_last ? kChannelsLast : at::MemoryFormat::Contiguous;
  std::vector<at::Tensor> maps;
  std::vector<const void*> pointers;
  std::vector<int64_t> sizes;
  for (const at::Tensor& feature : features) {
    maps.push_back(feature.contiguous(format));
    pointers.push_back(maps.back().const_data_ptr());
    sizes.insert(sizes.end(), {feature.size(2), feature.size(3)});
  }
  const at::Tensor rows = rois.contiguous();
  at::Tensor out = at::empty({rois.size(0), first.size(1), output_size[0], output_size[1]},
                             first.options().memory_format(format));
  const FrcnnRoiAlign pooling{sizes.data(),   scales.data(),  static_cast<int64_t>(scales.size()),
                              first.size(0),  first.size(1),  rois.size(0),
                              output_size[0], output_size[1], sampling_ratio,
                              aligned,        channels_last,  finest_scale};
  expect_launched("roi_align", frcnn_cuda_roi_align(type_of(first), &pooling, pointers.data(),
                                                    rows.const_data_ptr(), out.mutable_data_ptr(), stream()));
  return out;
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& rois,
                                           at::IntArrayRef sizes, int64_t batch, at::ArrayRef<double> scales,
                                           int64_t sampling_ratio, bool aligned, double finest_scale) {
  check_roi_align_backward(grad, rois, sizes, batch, scales, sampling_ratio, finest_scale);
  expect_pooling_fits("roi_align_backward", scales.size(), grad.size(2), grad.size(3));
  const CUDAGuard guard(grad.device());
  const at::Tensor source = grad.contiguous(kChannelsLast), rows = rois.contiguous();
  std::vector<at::Tensor> grads;
  std::vector<void*> pointers;
  for (size_t l = 0; l < scales.size(); ++l) {
    grads.push_back(at::empty({batch, grad.size(1), sizes[2 * l], sizes[2 * l + 1]},
                              grad.options().memory_format(kChannelsLast)));
    pointers.push_back(grads.back().mutable_data_ptr());
  }
  const FrcnnRoiAlign pooling{sizes.data(), scales.data(), static_cast<int64_t>(scales.size()),
                              batch,        grad.size(1),  rois.size(0),
                              grad.size(2), grad.size(3),  sampling_ratio,
                              aligned,      true,          finest_scale};
  const at::Tensor memory = workspace(frcnn_cuda_roi_align_backward_workspace(&pooling), grad);
  expect_launched(
      "roi_align_backward",
      frcnn_cuda_roi_align_backward(type_of(grad), &pooling, source.const_data_ptr(), rows.const_data_ptr(),
                                    memory.mutable_data_ptr(), pointers.data(), stream()));
  return grads;
}

// ---- NMS --------------------------------------------------------------------------------------------------

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

void run_sorted(const at::Tensor& boxes, const FrcnnSortedNms& problem) {
  const at::Tensor memory = workspace(frcnn_cuda_nms_sorted_workspace(type_of(boxes), problem.total), boxes);
  expect_launched("nms",
                  frcnn_cuda_nms_sorted(type_of(boxes), &problem, memory.mutable_data_ptr(), stream()));
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
        "nms", frcnn_cuda_nms(box_rows.const_data_ptr<float>(), score_row.const_data_ptr<float>(),
                              static_cast<const int64_t*>(pointer_or_null(group_row)), 1, n, iou_threshold, n,
                              /*drop_absent=*/false, indices.mutable_data_ptr<int64_t>(),
                              count.mutable_data_ptr<int64_t>(), stream()));
    return indices.slice(0, 0, count.item<int64_t>());
  }

  // By score, then stably by group; segments are the groups.
  const at::Tensor by_score = best_first(score_row);
  FrcnnSortedNms problem{};
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
  run_sorted(boxes, problem);
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
        "nms",
        frcnn_cuda_nms(box_rows.const_data_ptr<float>(), score_rows.const_data_ptr<float>(), nullptr,
                       segments, n, iou_threshold, max_keep, /*drop_absent=*/true,
                       indices.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>(), stream()));
    return {indices, counts};
  }
  if (n == 0) return {indices.fill_(-1), counts.zero_()};  // float64; there is nothing to sort
  const at::Tensor first_row = at::arange(segments, counts.options()).mul_(n).unsqueeze_(1);
  const at::Tensor order = best_first(score_rows).add(first_row);
  FrcnnSortedNms problem{};
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
  run_sorted(boxes, problem);
  return {indices, counts};
}

// ---- IoU losses -------------------------------------------------------------------------------------------

at::Tensor iou_loss_forward(const at::Tensor& pred, const at::Tensor& target,
                            const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& boxes,
                            at::ArrayRef<double> stds, c10::string_view mode, double eps, double beta,
                            c10::string_view reduction) {
  check_iou_loss(pred, target, weight, boxes, stds, mode, eps, beta, reduction);
  const CUDAGuard guard(pred.device());
  const IouLoss kind = iou_loss_mode(mode);
  const Reduction reduce = reduction_of(reduction);
  const int64_t n = pred.size(0);
  const at::Tensor pred_rows = pred.contiguous(), target_rows = target.contiguous();
  const at::Tensor weights = contiguous_or_none(weight), box_rows = contiguous_or_none(boxes);
  std::vector<int64_t> shape;
  if (reduce == Reduction::kNone)
    shape = kind == IouLoss::kBounded ? std::vector<int64_t>{n, 4} : std::vector{n};
  at::Tensor loss = at::empty(shape, pred.options());
  const at::Tensor memory = workspace(frcnn_cuda_iou_loss_workspace(n), pred);
  expect_launched("iou_loss",
                  frcnn_cuda_iou_loss(type_of(pred), pred_rows.const_data_ptr(), target_rows.const_data_ptr(),
                                      pointer_or_null(weights), pointer_or_null(box_rows), stds.data(), n,
                                      static_cast<int64_t>(kind), eps, beta, static_cast<int64_t>(reduce),
                                      memory.mutable_data_ptr(), loss.mutable_data_ptr(), stream()));
  return loss;
}

at::Tensor iou_loss_backward(const at::Tensor& grad, const at::Tensor& pred, const at::Tensor& target,
                             const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& boxes,
                             at::ArrayRef<double> stds, c10::string_view mode, double eps, double beta,
                             c10::string_view reduction) {
  check_iou_loss_backward(grad, pred, target, weight, boxes, stds, mode, eps, beta, reduction);
  const CUDAGuard guard(pred.device());
  const at::Tensor grad_rows = grad.contiguous(), pred_rows = pred.contiguous(),
                   target_rows = target.contiguous();
  const at::Tensor weights = contiguous_or_none(weight), box_rows = contiguous_or_none(boxes);
  at::Tensor result = at::empty_like(pred_rows);
  expect_launched("iou_loss_backward",
                  frcnn_cuda_iou_loss_backward(
                      type_of(pred), grad_rows.const_data_ptr(), pred_rows.const_data_ptr(),
                      target_rows.const_data_ptr(), pointer_or_null(weights), pointer_or_null(box_rows),
                      stds.data(), pred.size(0), static_cast<int64_t>(iou_loss_mode(mode)), eps, beta,
                      static_cast<int64_t>(reduction_of(reduction)), result.mutable_data_ptr(), stream()));
  return result;
}

// ---- assignment -------------------------------------------------------------------------------------------

std::tuple<at::Tensor, at::Tensor> assign_max_iou(const at::Tensor& boxes, const at::Tensor& gts,
                                                  const at::Tensor& gt_counts,
                                                  const std::optional<at::Tensor>& ignore,
                                                  const std::optional<at::Tensor>& ignore_counts,
                                                  double pos_iou, double neg_iou, double min_pos_iou,
                                                  bool match_low_quality, double ignore_iof) {
  check_assign_max_iou(boxes, gts, gt_counts, ignore, ignore_counts, pos_iou, neg_iou, min_pos_iou,
                       ignore_iof);
  const CUDAGuard guard(boxes.device());
  const int64_t batch = gts.size(0), g = gts.size(1), n = boxes.size(-2);
  TORCH_CHECK(batch <= 65535, "assign_max_iou: a batch of ", batch, " is more than the CUDA kernel takes");
  const at::Tensor box_rows = boxes.contiguous(), gt_rows = gts.contiguous(), counts = gt_counts.contiguous();
  const at::Tensor regions = contiguous_or_none(ignore), region_counts = contiguous_or_none(ignore_counts);
  at::Tensor gt_index = at::empty({batch, n}, boxes.options().dtype(at::kLong));
  at::Tensor max_iou = at::empty({batch, n}, boxes.options());
  const at::Tensor gt_best = at::empty({batch, g}, boxes.options());
  expect_launched("assign_max_iou",
                  frcnn_cuda_assign_max_iou(
                      type_of(boxes), box_rows.const_data_ptr(), boxes.dim() == 3 ? n * 4 : 0, n,
                      gt_rows.const_data_ptr(), counts.const_data_ptr<int64_t>(), batch, g,
                      pointer_or_null(regions), static_cast<const int64_t*>(pointer_or_null(region_counts)),
                      regions.defined() ? regions.size(1) : 0, pos_iou, neg_iou, min_pos_iou,
                      match_low_quality, ignore_iof, gt_best.mutable_data_ptr(),
                      gt_index.mutable_data_ptr<int64_t>(), max_iou.mutable_data_ptr(), stream()));
  return {gt_index, max_iou};
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CUDA, m) {
  m.impl("grid_anchors", &grid_anchors);
  m.impl("box_iou", &box_iou);
  m.impl("encode_boxes", &encode_boxes);
  m.impl("decode_boxes", &decode_boxes);
  m.impl("decode_boxes_backward", &decode_boxes_backward);
  m.impl("decode_proposals", &decode_proposals);
  m.impl("roi_align", &roi_align);
  m.impl("roi_align_backward", &roi_align_backward);
  m.impl("nms", &nms);
  m.impl("nms_padded", &nms_padded);
  m.impl("iou_loss", &iou_loss_forward);
  m.impl("iou_loss_backward", &iou_loss_backward);
  m.impl("assign_max_iou", &assign_max_iou);
}

}  // namespace frcnn
