// What bindings ask of an argument. A message names the operator and the argument, what was given and what is
// expected. What needs no tensor is also asked by the fake kernels and the reference, through library.cpp.
#pragma once

#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>

#include "../kernel_api.h"
#include "../sizes.h"
#include "tensor.h"

namespace frcnn {

struct Argument {
  const char* op;
  const char* name;
  const Tensor& tensor;
};

// `sizes` holds -1 where any size will do; `expected` says the same in words.
inline void expect_shape(const Argument& a, std::initializer_list<int64_t> sizes, const char* expected) {
  bool matches = a.tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; matches && i < sizes.size(); ++i) {
    matches = sizes.begin()[i] == -1 || a.tensor.size(i) == sizes.begin()[i];
  }
  FRCNN_CHECK(matches, a.op, ": ", a.name, " has shape ", a.tensor.sizes(), ", expected ", expected);
  for (const int64_t size : a.tensor.sizes()) {
    FRCNN_CHECK(size <= kMostAlongOne, a.op, ": ", a.name, " has shape ", a.tensor.sizes(),
                ", expected at most ", kMostAlongOne, " along each dimension; split the call");
  }
}

inline void expect_dtype(const Argument& a, std::initializer_list<ScalarType> types, const char* expected) {
  for (const auto type : types) {
    if (a.tensor.scalar_type() == type) return;
  }
  FRCNN_CHECK(false, a.op, ": ", a.name, " is ", a.tensor.scalar_type(), ", expected ", expected);
}

inline void expect_float(const Argument& a) {
  expect_dtype(a, {ScalarType::Float, ScalarType::Double},
               "float32 or float64; boxes are not rounded to half, use .float()");
}

inline void expect_same_device(const Argument& a, const Argument& b) {
  FRCNN_CHECK(a.tensor.device() == b.tensor.device(), a.op, ": ", a.name, " is on ", a.tensor.device(),
              " but ", b.name, " is on ", b.tensor.device(), "; move both to one device");
}

inline void expect_like(const Argument& a, const Argument& b) {
  expect_same_device(a, b);
  FRCNN_CHECK(a.tensor.scalar_type() == b.tensor.scalar_type(), a.op, ": ", a.name, " is ",
              a.tensor.scalar_type(), " but ", b.name, " is ", b.tensor.scalar_type(),
              "; convert one to the dtype of the other");
}

inline void expect_between(const char* op, const char* name, double value, double low, double high) {
  FRCNN_CHECK(value >= low && value <= high, op, ": ", name, " is ", value, ", expected a number in [", low,
              ", ", high, "]");
}

// In the range of float32, which most kernels compute in; false for NaN.
inline bool is_positive(double value) {
  using Limits = std::numeric_limits<float>;
  return value >= Limits::denorm_min() && value <= Limits::max();
}

inline void expect_positive(const char* op, const char* name, double value) {
  FRCNN_CHECK(is_positive(value), op, ": ", name, " is ", value, ", expected a positive number");
}

inline void expect_all_positive(const char* op, const char* name, Floats values) {
  FRCNN_CHECK(!values.empty(), op, ": ", name, " is empty, expected at least one number");
  for (const double value : values) {
    FRCNN_CHECK(is_positive(value), op, ": ", name, " hold ", value, ", expected positive numbers");
  }
}

inline void expect_count(const char* op, const char* name, int64_t value, int64_t low, int64_t high) {
  FRCNN_CHECK(value >= low && value <= high, op, ": ", name, " is ", value, ", expected ", low, " to ", high);
}

// Of a tensor that is about to be allocated.
inline void expect_elements(const char* op, const char* name, std::initializer_list<int64_t> shape) {
  FRCNN_CHECK(product(shape) <= kMostElements, op, ": ", name, " would have shape ", Ints(shape),
              ", expected at most ", kMostElements, " elements; split the call");
}

inline void expect_stds(const char* op, Floats stds) {
  FRCNN_CHECK(stds.size() == 4, op, ": stds has ", stds.size(), " numbers, expected 4 (dx, dy, dw, dh)");
  expect_all_positive(op, "stds", stds);
}

// One level's cells, or its anchors where there are several per cell.
inline void expect_cells(const char* op, const char* name, int64_t height, int64_t width, int64_t per_cell) {
  FRCNN_CHECK(height >= 0 && width >= 0, op, ": ", name, " hold ", height, " x ", width,
              " cells, expected none below 0");
  FRCNN_CHECK(height <= kMostAlongOne && width <= kMostAlongOne &&
                  product({height, width, per_cell}) <= kMostAlongOne,
              op, ": ", name, " hold a level of ", height, " x ", width, " cells",
              per_cell == 1 ? "" : " with " + std::to_string(per_cell) + " anchors each",
              ", expected at most ", kMostAlongOne, per_cell == 1 ? " cells" : " anchors", " per level");
}

inline void expect_sizes(const char* op, Ints sizes, size_t levels, int64_t per_cell) {
  FRCNN_CHECK(sizes.size() == 2 * levels, op, ": sizes has ", sizes.size(), " numbers, expected ", 2 * levels,
              " (height and width of each of ", levels, " levels)");
  for (size_t level = 0; level < levels; ++level) {
    expect_cells(op, "sizes", sizes[2 * level], sizes[2 * level + 1], per_cell);
  }
}

inline void expect_anchors(const char* op, Floats strides, Floats scales, Floats ratios,
                           double center_offset) {
  expect_all_positive(op, "strides", strides);
  expect_all_positive(op, "scales", scales);
  expect_all_positive(op, "ratios", ratios);
  expect_between(op, "center_offset", center_offset, 0, 1);
}

inline void expect_grid(const char* op, Ints sizes, Floats strides, Floats scales, Floats ratios,
                        double center_offset) {
  expect_anchors(op, strides, scales, ratios, center_offset);
  expect_sizes(op, sizes, strides.size(), static_cast<int64_t>(scales.size() * ratios.size()));
}

inline void expect_proposals(Floats strides, Floats scales, Floats ratios, double center_offset, Floats stds,
                             double min_size, double iou_threshold, int64_t pre_nms, int64_t count) {
  const char* op = "select_proposals";
  expect_anchors(op, strides, scales, ratios, center_offset);
  expect_stds(op, stds);
  FRCNN_CHECK(min_size >= 0, op, ": min_size is ", min_size, ", expected a number of pixels, 0 or more");
  expect_between(op, "iou_threshold", iou_threshold, 0, 1);
  expect_count(op, "pre_nms", pre_nms, 0, kMostAlongOne);
  expect_count(op, "count", count, 0, kMostAlongOne);
}

inline void expect_bins(const char* op, const char* name, Ints bins) {
  const auto fits = [](int64_t along_one) { return along_one >= 1 && along_one <= kMostBinsAlongOne; };
  FRCNN_CHECK(bins.size() == 2 && fits(bins[0]) && fits(bins[1]), op, ": ", name, " is ", bins,
              ", expected (height, width), each from 1 to ", kMostBinsAlongOne);
}

inline void expect_pooling(const char* op, Floats scales, int64_t sampling_ratio, double finest_scale) {
  expect_all_positive(op, "scales", scales);
  FRCNN_CHECK(
      sampling_ratio >= 0 && sampling_ratio <= kMostSamples, op, ": sampling_ratio is ", sampling_ratio,
      ", expected 0 (as many samples as the RoI covers cells) or a number of samples up to ", kMostSamples);
  expect_positive(op, "finest_scale", finest_scale);
}

inline void expect_maps(const char* op, Ints sizes, size_t levels, int64_t batch) {
  expect_sizes(op, sizes, levels, 1);
  expect_count(op, "batch", batch, 0, kMostAlongOne);
}

inline void expect_selection(Floats stds, double score_threshold, double iou_threshold,
                             int64_t max_detections) {
  const char* op = "select_detections";
  expect_stds(op, stds);
  expect_between(op, "score_threshold", score_threshold, 0, 1);
  expect_between(op, "iou_threshold", iou_threshold, 0, 1);
  expect_count(op, "max_detections", max_detections, 0, kMostAlongOne);
}

inline void expect_normalization(Floats mean, Floats std, bool rgb) {
  const char* op = "normalize_images";
  FRCNN_CHECK(mean.size() == std.size() && !mean.empty() && mean.size() <= kFrcnnMostImageChannels, op,
              ": mean and std have ", mean.size(), " and ", std.size(), " numbers, expected 1 to ",
              int{kFrcnnMostImageChannels}, " each, one per channel");
  FRCNN_CHECK(!rgb || mean.size() == 3, op, ": rgb reverses three channels, and mean has ", mean.size(),
              " numbers");
  for (const double value : mean) {
    FRCNN_CHECK(value == 0 || is_positive(std::abs(value)), op, ": mean holds ", value,
                ", expected finite numbers");
  }
  expect_all_positive(op, "std", std);
}

inline void expect_resize(Ints sizes, int64_t images, int64_t height, int64_t width) {
  const char* op = "resize_images";
  expect_count(op, "height", height, 0, kMostAlongOne);
  expect_count(op, "width", width, 0, kMostAlongOne);
  FRCNN_CHECK(static_cast<int64_t>(sizes.size()) == 2 * images, op, ": sizes has ", sizes.size(),
              " numbers, expected ", 2 * images, " (height and width of each image)");
  for (size_t i = 0; i < sizes.size(); i += 2) {
    FRCNN_CHECK(sizes[i] >= 0 && sizes[i] <= height && sizes[i + 1] >= 0 && sizes[i + 1] <= width, op,
                ": sizes hold ", sizes[i], " x ", sizes[i + 1], ", expected at most height x width, ", height,
                " x ", width);
  }
}

inline void expect_seed(const char* op, const Tensor& seed, const Argument& beside) {
  const Argument number{op, "seed", seed};
  expect_shape(number, {}, "[], one number");
  expect_dtype(number, {ScalarType::Long}, "int64");
  expect_same_device(number, beside);
}

inline void expect_samples(const char* op, int64_t samples, int64_t most_positive) {
  expect_count(op, "samples", samples, 0, kMostAlongOne);
  expect_count(op, "most_positive", most_positive, 0, samples);
}

inline void expect_max_keep(int64_t max_keep) {
  expect_count("nms_padded", "max_keep", max_keep, 0, kMostAlongOne);
}

}  // namespace frcnn
