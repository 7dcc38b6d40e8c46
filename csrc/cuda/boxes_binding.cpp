// grid_anchors, box_iou, box coding, decode_proposals and assign_max_iou for torch.
#include "binding.h"

namespace frcnn {
namespace {

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
  m.impl("assign_max_iou", &assign_max_iou);
}

}  // namespace frcnn
