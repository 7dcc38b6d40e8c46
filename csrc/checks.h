// What every operator asks of its arguments, on every device: one check per operator, called first. The parts
// that need no tensor are also what the fake kernels and the reference ask (library.cpp).
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "box.h"
#include "expect.h"

namespace frcnn {

// ---- anchors and box coding -------------------------------------------------------------------------------

inline void check_grid_anchors(at::IntArrayRef sizes, at::ArrayRef<double> strides,
                               at::ArrayRef<double> scales, at::ArrayRef<double> ratios,
                               double center_offset) {
  const char* op = "grid_anchors";
  expect_anchors(op, strides, scales, ratios, center_offset);
  const int64_t per_cell = static_cast<int64_t>(scales.size() * ratios.size());
  expect_sizes(op, sizes, strides.size(), per_cell);
}

inline void check_box_iou(const at::Tensor& a, const at::Tensor& b) {
  const Argument first{"box_iou", "a", a}, second{"box_iou", "b", b};
  expect_shape(first, {-1, 4}, "[N, 4]");
  expect_shape(second, {-1, 4}, "[M, 4]");
  expect_float(first);
  expect_like(second, first);
  expect_elements("box_iou", "the result", {a.size(0), b.size(0)});
}

inline void check_encode_boxes(const at::Tensor& boxes, const at::Tensor& targets,
                               at::ArrayRef<double> stds) {
  const Argument box{"encode_boxes", "boxes", boxes}, target{"encode_boxes", "targets", targets};
  expect_shape(box, {-1, 4}, "[N, 4]");
  expect_shape(target, {boxes.size(0), 4}, "[N, 4] with one target per box");
  expect_float(box);
  expect_like(target, box);
  expect_stds("encode_boxes", stds);
}

inline void check_decode_boxes(const at::Tensor& boxes, const at::Tensor& deltas, at::ArrayRef<double> stds,
                               at::OptionalIntArrayRef max_shape) {
  const Argument box{"decode_boxes", "boxes", boxes}, delta{"decode_boxes", "deltas", deltas};
  expect_shape(box, {-1, 4}, "[N, 4]");
  expect_shape(delta, {boxes.size(0), -1}, "[N, 4 * C] with one row per box");
  TORCH_CHECK(deltas.size(1) % 4 == 0, "decode_boxes: deltas has shape ", deltas.sizes(),
              ", expected [N, 4 * C]: a multiple of 4 columns");
  expect_float(box);
  expect_like(delta, box);
  expect_stds("decode_boxes", stds);
  expect_max_shape("decode_boxes", max_shape);
}

inline void check_decode_boxes_backward(const at::Tensor& grad, const at::Tensor& boxes,
                                        const at::Tensor& deltas, at::ArrayRef<double> stds,
                                        at::OptionalIntArrayRef max_shape) {
  check_decode_boxes(boxes, deltas, stds, max_shape);
  const Argument gradient{"decode_boxes_backward", "grad", grad};
  expect_shape(gradient, {deltas.size(0), deltas.size(1)}, "the shape of deltas");
  expect_like(gradient, {"decode_boxes_backward", "deltas", deltas});
}

inline void check_decode_proposals(at::TensorList deltas, at::TensorList indices,
                                   const at::Tensor& image_sizes, at::ArrayRef<double> strides,
                                   at::ArrayRef<double> scales, at::ArrayRef<double> ratios,
                                   double center_offset, at::ArrayRef<double> stds, double min_size) {
  const char* op = "decode_proposals";
  TORCH_CHECK(!deltas.empty(), op, ": deltas is empty, expected one tensor per level");
  TORCH_CHECK(indices.size() == deltas.size() && strides.size() == deltas.size(), op, ": there are ",
              deltas.size(), " deltas, ", indices.size(), " indices and ", strides.size(),
              " strides, expected one of each per level");
  const Argument size{op, "image_sizes", image_sizes};
  expect_shape(size, {-1, 2}, "[B, 2], (height, width) of each image");
  expect_dtype(size, {at::kFloat}, "float32");
  const int64_t batch = image_sizes.size(0);
  const int64_t per_cell = static_cast<int64_t>(scales.size() * ratios.size());
  int64_t chosen = 0;
  for (size_t level = 0; level < deltas.size(); ++level) {
    const Argument delta{op, "deltas", deltas[level]}, index{op, "indices", indices[level]};
    expect_shape(delta, {batch, 4 * per_cell, -1, -1}, "[B, 4 * ratios * scales, H, W]");
    expect_cells(op, "deltas", deltas[level].size(2), deltas[level].size(3), per_cell);
    expect_dtype(delta, {at::kFloat, at::kHalf, at::kBFloat16}, "float32, float16 or bfloat16");
    expect_like(delta, {op, "deltas of the first level", deltas[0]});
    expect_same_device(delta, size);
    expect_shape(index, {batch, -1}, "[B, k]");
    expect_dtype(index, {at::kLong}, "int64");
    expect_same_device(index, size);
    chosen += indices[level].size(1);
  }
  TORCH_CHECK(product({batch, chosen}) <= kMostAlongOne, op, ": indices choose ", chosen,
              " anchors of each of ", batch, " images, expected at most ", kMostAlongOne,
              " in all; split the call");
  expect_anchors(op, strides, scales, ratios, center_offset);
  expect_stds(op, stds);
  TORCH_CHECK(min_size >= 0, op, ": min_size is ", min_size, ", expected a number of pixels, 0 or more");
}

// ---- RoIAlign ---------------------------------------------------------------------------------------------

inline void expect_bins(const char* op, const char* name, at::IntArrayRef bins) {
  const auto fits = [](int64_t along_one) { return along_one >= 1 && along_one <= kMostBinsAlongOne; };
  TORCH_CHECK(bins.size() == 2 && fits(bins[0]) && fits(bins[1]), op, ": ", name, " is ", bins,
              ", expected (height, width), each from 1 to ", kMostBinsAlongOne);
}

inline void expect_pooling(const char* op, at::ArrayRef<double> scales, int64_t sampling_ratio,
                           double finest_scale) {
  expect_all_positive(op, "scales", scales);
  TORCH_CHECK(
      sampling_ratio >= 0 && sampling_ratio <= kMostSamples, op, ": sampling_ratio is ", sampling_ratio,
      ", expected 0 (as many samples as the RoI covers cells) or a number of samples up to ", kMostSamples);
  expect_positive(op, "finest_scale", finest_scale);
}

inline void expect_maps(const char* op, at::IntArrayRef sizes, size_t levels, int64_t batch) {
  expect_sizes(op, sizes, levels, 1);
  expect_count(op, "batch", batch, 0, kMostAlongOne);
}

// RoIs are never rounded to half: float32 goes with half features, float64 with float64 features.
inline void expect_rois(const Argument& rois, const Argument& features) {
  expect_shape(rois, {-1, 5}, "[K, 5]: image index, x1, y1, x2, y2");
  const bool wide = features.tensor.scalar_type() == at::kDouble;
  expect_dtype(rois, {wide ? at::kDouble : at::kFloat},
               wide ? "float64, as the features" : "float32, whatever the features are");
  expect_same_device(rois, features);
}

inline void check_roi_align(at::TensorList features, const at::Tensor& rois, at::IntArrayRef output_size,
                            at::ArrayRef<double> scales, int64_t sampling_ratio, double finest_scale) {
  const char* op = "roi_align";
  TORCH_CHECK(!features.empty(), op, ": features is empty, expected one tensor per level");
  TORCH_CHECK(scales.size() == features.size(), op, ": there are ", scales.size(), " scales for ",
              features.size(), " levels of features");
  const Argument first{op, "features of the first level", features[0]};
  expect_shape(first, {-1, -1, -1, -1}, "[B, C, H, W]");
  expect_dtype(first, {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16},
               "float32, float64, float16 or bfloat16");
  for (const at::Tensor& feature : features) {
    const Argument level{op, "features", feature};
    expect_shape(level, {features[0].size(0), features[0].size(1), -1, -1},
                 "[B, C, H, W] with the same B and C on every level");
    expect_like(level, first);
    expect_cells(op, "features", feature.size(2), feature.size(3), 1);
  }
  expect_rois({op, "rois", rois}, first);
  expect_bins(op, "output_size", output_size);
  expect_pooling(op, scales, sampling_ratio, finest_scale);
  expect_elements(op, "the result", {rois.size(0), features[0].size(1), output_size[0], output_size[1]});
}

inline void check_roi_align_backward(const at::Tensor& grad, const at::Tensor& rois, at::IntArrayRef sizes,
                                     int64_t batch, at::ArrayRef<double> scales, int64_t sampling_ratio,
                                     double finest_scale) {
  const char* op = "roi_align_backward";
  const Argument gradient{op, "grad", grad};
  expect_shape(gradient, {-1, -1, -1, -1}, "[K, C, h, w]");
  expect_dtype(gradient, {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16},
               "float32, float64, float16 or bfloat16");
  expect_rois({op, "rois", rois}, gradient);
  expect_shape(gradient, {rois.size(0), -1, -1, -1}, "[K, C, h, w] with one entry per RoI");
  expect_bins(op, "(h, w) of grad", grad.sizes().slice(2));
  expect_pooling(op, scales, sampling_ratio, finest_scale);
  expect_maps(op, sizes, scales.size(), batch);
  for (size_t level = 0; level < scales.size(); ++level) {
    expect_elements(op, "a gradient", {batch, grad.size(1), sizes[2 * level], sizes[2 * level + 1]});
  }
}

// ---- NMS --------------------------------------------------------------------------------------------------

inline void check_nms(const at::Tensor& boxes, const at::Tensor& scores,
                      const std::optional<at::Tensor>& groups, double iou_threshold) {
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
}

inline void expect_max_keep(int64_t max_keep) {
  expect_count("nms_padded", "max_keep", max_keep, 0, kMostAlongOne);
}

inline void check_nms_padded(const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold,
                             int64_t max_keep) {
  const Argument box{"nms_padded", "boxes", boxes}, score{"nms_padded", "scores", scores};
  expect_shape(box, {-1, -1, 4}, "[S, N, 4]");
  expect_shape(score, {boxes.size(0), boxes.size(1)}, "[S, N] with one score per box");
  expect_float(box);
  expect_like(score, box);
  expect_between("nms_padded", "iou_threshold", iou_threshold, 0, 1);
  expect_max_keep(max_keep);
  expect_elements("nms_padded", "the result", {boxes.size(0), max_keep});
}

// ---- IoU losses -------------------------------------------------------------------------------------------

inline IouLoss iou_loss_mode(std::string_view mode) {
  constexpr std::pair<std::string_view, IouLoss> modes[] = {
      {"log", IouLoss::kLog},        {"linear", IouLoss::kLinear}, {"square", IouLoss::kSquare},
      {"giou", IouLoss::kGiou},      {"diou", IouLoss::kDiou},     {"ciou", IouLoss::kCiou},
      {"bounded", IouLoss::kBounded}};
  for (const auto& [name, value] : modes) {
    if (name == mode) return value;
  }
  TORCH_CHECK(false, "iou_loss: mode is \"", std::string(mode),
              "\", expected log, linear, square, giou, diou, ciou or bounded");
}

enum class Reduction { kNone, kSum, kMean };

inline Reduction reduction_of(std::string_view reduction) {
  if (reduction == "none") return Reduction::kNone;
  if (reduction == "sum") return Reduction::kSum;
  TORCH_CHECK(reduction == "mean", "iou_loss: reduction is \"", std::string(reduction),
              "\", expected none, sum or mean");
  return Reduction::kMean;
}

inline void check_iou_loss(const at::Tensor& pred, const at::Tensor& target,
                           const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& boxes,
                           at::ArrayRef<double> stds, std::string_view mode, double eps, double beta,
                           std::string_view reduction) {
  const char* op = "iou_loss";
  const Argument prediction{op, "pred", pred}, truth{op, "target", target};
  expect_shape(prediction, {-1, 4}, "[N, 4]");
  expect_shape(truth, {pred.size(0), 4}, "[N, 4] with one target per prediction");
  expect_float(prediction);
  expect_like(truth, prediction);
  if (weight.has_value()) {
    const Argument factor{op, "weight", *weight};
    expect_shape(factor, {pred.size(0)}, "[N] with one weight per prediction");
    expect_like(factor, prediction);
  }
  if (boxes.has_value()) {
    const Argument box{op, "boxes", *boxes};
    expect_shape(box, {pred.size(0), 4}, "[N, 4] with one box per prediction");
    expect_like(box, prediction);
  }
  expect_stds(op, stds);
  expect_positive(op, "eps", eps);
  if (iou_loss_mode(mode) == IouLoss::kBounded) expect_positive(op, "beta", beta);
  reduction_of(reduction);
}

inline void check_iou_loss_backward(const at::Tensor& grad, const at::Tensor& pred, const at::Tensor& target,
                                    const std::optional<at::Tensor>& weight,
                                    const std::optional<at::Tensor>& boxes, at::ArrayRef<double> stds,
                                    std::string_view mode, double eps, double beta,
                                    std::string_view reduction) {
  check_iou_loss(pred, target, weight, boxes, stds, mode, eps, beta, reduction);
  const Argument gradient{"iou_loss_backward", "grad", grad};
  if (reduction_of(reduction) != Reduction::kNone) {
    expect_shape(gradient, {}, "a scalar, as the loss");
  } else if (iou_loss_mode(mode) == IouLoss::kBounded) {
    expect_shape(gradient, {pred.size(0), 4}, "[N, 4], as the loss");
  } else {
    expect_shape(gradient, {pred.size(0)}, "[N], as the loss");
  }
  expect_like(gradient, {"iou_loss_backward", "pred", pred});
}

// ---- assignment -------------------------------------------------------------------------------------------

inline void check_assign_max_iou(const at::Tensor& boxes, const at::Tensor& gts, const at::Tensor& gt_counts,
                                 const std::optional<at::Tensor>& ignore,
                                 const std::optional<at::Tensor>& ignore_counts, double pos_iou,
                                 double neg_iou, double min_pos_iou, double ignore_iof) {
  const char* op = "assign_max_iou";
  const Argument box{op, "boxes", boxes}, gt{op, "gts", gts};
  expect_shape(gt, {-1, -1, 4}, "[B, G, 4]");
  const int64_t batch = gts.size(0);
  if (boxes.dim() == 3) {
    expect_shape(box, {batch, -1, 4}, "[N, 4], or [B, N, 4] with the B of gts");
  } else {
    expect_shape(box, {-1, 4}, "[N, 4], or [B, N, 4] with the B of gts");
  }
  expect_float(box);
  expect_like(gt, box);
  const auto check_counts = [&](const char* name, const at::Tensor& counts) {
    const Argument count{op, name, counts};
    expect_shape(count, {batch}, "[B] with one count per image");
    expect_dtype(count, {at::kLong}, "int64");
    expect_same_device(count, box);
  };
  check_counts("gt_counts", gt_counts);
  TORCH_CHECK(ignore.has_value() == ignore_counts.has_value(), op,
              ": ignore and ignore_counts come together, only one was given");
  if (ignore.has_value()) {
    const Argument region{op, "ignore", *ignore};
    expect_shape(region, {batch, -1, 4}, "[B, I, 4] with the B of gts");
    expect_like(region, box);
    check_counts("ignore_counts", *ignore_counts);
  }
  expect_between(op, "pos_iou", pos_iou, 0, 1);
  expect_between(op, "neg_iou", neg_iou, 0, 1);
  expect_between(op, "min_pos_iou", min_pos_iou, 0, 1);
  TORCH_CHECK(!std::isnan(ignore_iof), op, ": ignore_iof is nan, expected a number; 0 or less turns it off");
}

}  // namespace frcnn
