// Anchors of a feature pyramid: every base anchor, shifted to every cell.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/TensorOptions.h>
#include <torch/library.h>

#include <vector>

#include "../box.h"
#include "../checks.h"

namespace frcnn {
namespace {

at::Tensor grid_anchors(at::IntArrayRef sizes, at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                        at::ArrayRef<double> ratios, double center_offset, at::Device device) {
  check_grid_anchors(sizes, strides, scales, ratios, center_offset);
  const int64_t per_cell = static_cast<int64_t>(scales.size() * ratios.size());
  int64_t cells = 0;
  for (size_t level = 0; level < strides.size(); ++level) cells += sizes[2 * level] * sizes[2 * level + 1];
  at::Tensor anchors = at::empty({cells * per_cell, 4}, at::TensorOptions().dtype(at::kFloat).device(device));
  float* out = anchors.mutable_data_ptr<float>();
  for (size_t level = 0; level < strides.size(); ++level) {
    const int64_t height = sizes[2 * level], width = sizes[2 * level + 1];
    if (width == 0) continue;
    const float stride = static_cast<float>(strides[level]);
    std::vector<Box<float>> base;
    for (const double ratio : ratios) {
      for (const double scale : scales) {
        base.push_back(base_anchor(stride, static_cast<float>(scale), static_cast<float>(ratio),
                                   static_cast<float>(center_offset)));
      }
    }
    at::parallel_for(0, height, 16, [&](int64_t begin, int64_t end) {
      float* row = out + begin * width * per_cell * 4;
      for (int64_t y = begin; y < end; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          for (const Box<float>& anchor : base) {
            store_box(row, shift(anchor, static_cast<float>(x) * stride, static_cast<float>(y) * stride));
            row += 4;
          }
        }
      }
    });
    out += height * width * per_cell * 4;
  }
  return anchors;
}

// No tensor argument says which device's kernel to call, so the device argument does.
at::Tensor select_by_device(at::IntArrayRef sizes, at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                            at::ArrayRef<double> ratios, double center_offset, at::Device device) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("frcnn_ops::grid_anchors", "")
                             .typed<decltype(select_by_device)>();
  const auto key = c10::computeDispatchKey(std::nullopt, std::nullopt, device);
  return op.redispatch(c10::DispatchKeySet(key), sizes, strides, scales, ratios, center_offset, device);
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CPU, m) { m.impl("grid_anchors", &grid_anchors); }
TORCH_LIBRARY_IMPL(frcnn_ops, BackendSelect, m) { m.impl("grid_anchors", &select_by_device); }

}  // namespace frcnn
