// What bindings ask of an argument. A message names the operator and the argument, what was given and what is
// expected. What needs no tensor is also asked by the fake kernels and the reference, through library.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>

#include "../sizes.h"

namespace frcnn {

struct Argument {
  const char* op;
  const char* name;
  const at::Tensor& tensor;
};

// `sizes` holds -1 where any size will do; `expected` says the same in words.
inline void expect_shape(const Argument& a, std::initializer_list<int64_t> sizes, const char* expected) {
  bool matches = a.tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; matches && i < sizes.size(); ++i) {
    matches = sizes.begin()[i] == -1 || a.tensor.size(i) == sizes.begin()[i];
  }
  TORCH_CHECK(matches, a.op, ": ", a.name, " has shape ", a.tensor.sizes(), ", expected ", expected);
  for (const int64_t size : a.tensor.sizes()) {
    TORCH_CHECK(size <= kMostAlongOne, a.op, ": ", a.name, " has shape ", a.tensor.sizes(),
                ", expected at most ", kMostAlongOne, " along each dimension; split the call");
  }
}

inline void expect_dtype(const Argument& a, std::initializer_list<at::ScalarType> types,
                         const char* expected) {
  for (const auto type : types) {
    if (a.tensor.scalar_type() == type) return;
  }
  TORCH_CHECK(false, a.op, ": ", a.name, " is ", a.tensor.scalar_type(), ", expected ", expected);
}

inline void expect_float(const Argument& a) {
  expect_dtype(a, {at::kFloat, at::kDouble},
               "float32 or float64; boxes are not rounded to half, use .float()");
}

inline void expect_same_device(const Argument& a, const Argument& b) {
  TORCH_CHECK(a.tensor.device() == b.tensor.device(), a.op, ": ", a.name, " is on ", a.tensor.device(),
              " but ", b.name, " is on ", b.tensor.device(), "; move both to one device");
}

inline void expect_like(const Argument& a, const Argument& b) {
  expect_same_device(a, b);
  TORCH_CHECK(a.tensor.scalar_type() == b.tensor.scalar_type(), a.op, ": ", a.name, " is ",
              a.tensor.scalar_type(), " but ", b.name, " is ", b.tensor.scalar_type(),
              "; convert one to the dtype of the other");
}

inline void expect_between(const char* op, const char* name, double value, double low, double high) {
  TORCH_CHECK(value >= low && value <= high, op, ": ", name, " is ", value, ", expected a number in [", low,
              ", ", high, "]");
}

// In the range of float32, which most kernels compute in; false for NaN.
inline bool is_positive(double value) {
  using Limits = std::numeric_limits<float>;
  return value >= Limits::denorm_min() && value <= Limits::max();
}

inline void expect_positive(const char* op, const char* name, double value) {
  TORCH_CHECK(is_positive(value), op, ": ", name, " is ", value, ", expected a positive number");
}

inline void expect_all_positive(const char* op, const char* name, at::ArrayRef<double> values) {
  TORCH_CHECK(!values.empty(), op, ": ", name, " is empty, expected at least one number");
  for (const double value : values) {
    TORCH_CHECK(is_positive(value), op, ": ", name, " hold ", value, ", expected positive numbers");
  }
}

inline void expect_count(const char* op, const char* name, int64_t value, int64_t low, int64_t high) {
  TORCH_CHECK(value >= low && value <= high, op, ": ", name, " is ", value, ", expected ", low, " to ", high);
}

// Of a tensor that is about to be allocated.
inline void expect_elements(const char* op, const char* name, std::initializer_list<int64_t> shape) {
  TORCH_CHECK(product(shape) <= kMostElements, op, ": ", name, " would have shape ", at::IntArrayRef(shape),
              ", expected at most ", kMostElements, " elements; split the call");
}

inline void expect_stds(const char* op, at::ArrayRef<double> stds) {
  TORCH_CHECK(stds.size() == 4, op, ": stds has ", stds.size(), " numbers, expected 4 (dx, dy, dw, dh)");
  expect_all_positive(op, "stds", stds);
}

// One level's cells, or its anchors where there are several per cell.
inline void expect_cells(const char* op, const char* name, int64_t height, int64_t width, int64_t per_cell) {
  TORCH_CHECK(height >= 0 && width >= 0, op, ": ", name, " hold ", height, " x ", width,
              " cells, expected none below 0");
  TORCH_CHECK(height <= kMostAlongOne && width <= kMostAlongOne &&
                  product({height, width, per_cell}) <= kMostAlongOne,
              op, ": ", name, " hold a level of ", height, " x ", width, " cells",
              per_cell == 1 ? "" : " with " + std::to_string(per_cell) + " anchors each",
              ", expected at most ", kMostAlongOne, per_cell == 1 ? " cells" : " anchors", " per level");
}

inline void expect_sizes(const char* op, at::IntArrayRef sizes, size_t levels, int64_t per_cell) {
  TORCH_CHECK(sizes.size() == 2 * levels, op, ": sizes has ", sizes.size(), " numbers, expected ", 2 * levels,
              " (height and width of each of ", levels, " levels)");
  for (size_t level = 0; level < levels; ++level) {
    expect_cells(op, "sizes", sizes[2 * level], sizes[2 * level + 1], per_cell);
  }
}

inline void expect_anchors(const char* op, at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                           at::ArrayRef<double> ratios, double center_offset) {
  expect_all_positive(op, "strides", strides);
  expect_all_positive(op, "scales", scales);
  expect_all_positive(op, "ratios", ratios);
  expect_between(op, "center_offset", center_offset, 0, 1);
}

inline void expect_grid(const char* op, at::IntArrayRef sizes, at::ArrayRef<double> strides,
                        at::ArrayRef<double> scales, at::ArrayRef<double> ratios, double center_offset) {
  expect_anchors(op, strides, scales, ratios, center_offset);
  expect_sizes(op, sizes, strides.size(), static_cast<int64_t>(scales.size() * ratios.size()));
}

inline void expect_proposals(at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                             at::ArrayRef<double> ratios, double center_offset, at::ArrayRef<double> stds,
                             double min_size, double iou_threshold, int64_t pre_nms, int64_t count) {
  const char* op = "select_proposals";
  expect_anchors(op, strides, scales, ratios, center_offset);
  expect_stds(op, stds);
  TORCH_CHECK(min_size >= 0, op, ": min_size is ", min_size, ", expected a number of pixels, 0 or more");
  expect_between(op, "iou_threshold", iou_threshold, 0, 1);
  expect_count(op, "pre_nms", pre_nms, 0, kMostAlongOne);
  expect_count(op, "count", count, 0, kMostAlongOne);
}

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

inline void expect_selection(at::ArrayRef<double> stds, double score_threshold, double iou_threshold,
                             int64_t max_detections) {
  const char* op = "select_detections";
  expect_stds(op, stds);
  expect_between(op, "score_threshold", score_threshold, 0, 1);
  expect_between(op, "iou_threshold", iou_threshold, 0, 1);
  expect_count(op, "max_detections", max_detections, 0, kMostAlongOne);
}

inline void expect_normalization(at::ArrayRef<double> mean, at::ArrayRef<double> std) {
  const char* op = "normalize_images";
  TORCH_CHECK(mean.size() == 3 && std.size() == 3, op, ": mean and std have ", mean.size(), " and ",
              std.size(), " numbers, expected 3 each, one per channel");
  for (const double value : mean) {
    TORCH_CHECK(value == 0 || is_positive(std::abs(value)), op, ": mean holds ", value,
                ", expected finite numbers");
  }
  expect_all_positive(op, "std", std);
}

inline void expect_resize(at::IntArrayRef sizes, int64_t images, int64_t height, int64_t width) {
  const char* op = "resize_images";
  expect_count(op, "height", height, 0, kMostAlongOne);
  expect_count(op, "width", width, 0, kMostAlongOne);
  TORCH_CHECK(static_cast<int64_t>(sizes.size()) == 2 * images, op, ": sizes has ", sizes.size(),
              " numbers, expected ", 2 * images, " (height and width of each image)");
  for (size_t i = 0; i < sizes.size(); i += 2) {
    TORCH_CHECK(sizes[i] >= 0 && sizes[i] <= height && sizes[i + 1] >= 0 && sizes[i + 1] <= width, op,
                ": sizes hold ", sizes[i], " x ", sizes[i + 1], ", expected at most height x width, ", height,
                " x ", width);
  }
}

inline void expect_max_keep(int64_t max_keep) {
  expect_count("nms_padded", "max_keep", max_keep, 0, kMostAlongOne);
}

}  // namespace frcnn
