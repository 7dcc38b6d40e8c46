// Selected anchors of all levels and images, decoded, clipped and size-filtered in one pass. An anchor is
// computed from its index, never stored.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <tuple>
#include <vector>

#include "../box.h"
#include "../checks.h"

namespace frcnn {
namespace {

std::tuple<at::Tensor, at::Tensor> decode_proposals(at::TensorList deltas, at::TensorList indices,
                                                    const at::Tensor& image_sizes,
                                                    at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                                                    at::ArrayRef<double> ratios, double center_offset,
                                                    at::ArrayRef<double> stds, double min_size) {
  check_decode_proposals(deltas, indices, image_sizes, strides, scales, ratios, center_offset, stds,
                         min_size);
  const int64_t batch = image_sizes.size(0);
  const int64_t per_cell = static_cast<int64_t>(scales.size() * ratios.size());
  int64_t total = 0;
  for (const at::Tensor& index : indices) total += index.size(1);
  at::Tensor boxes = at::empty({batch, total, 4}, image_sizes.options());
  at::Tensor valid = at::empty({batch, total}, image_sizes.options().dtype(at::kBool));
  const at::Tensor sizes = image_sizes.contiguous();
  const float* image_size = sizes.const_data_ptr<float>();
  const Delta<float> unit{static_cast<float>(stds[0]), static_cast<float>(stds[1]),
                          static_cast<float>(stds[2]), static_cast<float>(stds[3])};
  const float least = static_cast<float>(min_size);

  int64_t offset = 0;
  for (size_t level = 0; level < deltas.size(); ++level) {
    const at::Tensor& map = deltas[level];
    const at::Tensor chosen = indices[level].contiguous();
    const int64_t count = chosen.size(1), width = map.size(3), anchors = map.size(2) * width * per_cell;
    const int64_t* index = chosen.const_data_ptr<int64_t>();
    const float stride = static_cast<float>(strides[level]);
    std::vector<Box<float>> base;
    for (const double ratio : ratios) {
      for (const double scale : scales) {
        base.push_back(base_anchor(stride, static_cast<float>(scale), static_cast<float>(ratio),
                                   static_cast<float>(center_offset)));
      }
    }
    // Collected rather than thrown inside the threads.
    std::atomic<int64_t> out_of_range{-1};
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, map.scalar_type(), "decode_proposals", [&] {
      const scalar_t* data = map.const_data_ptr<scalar_t>();
      float* box_out = boxes.mutable_data_ptr<float>();
      bool* valid_out = valid.mutable_data_ptr<bool>();
      at::parallel_for(0, batch * count, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t image = i / count, anchor = index[i];
          if (anchor < 0 || anchor >= anchors) {
            out_of_range = i;
            continue;
          }
          const int64_t cell = anchor / per_cell, y = cell / width, x = cell % width, a = anchor % per_cell;
          const scalar_t* source =
              data + image * map.stride(0) + a * 4 * map.stride(1) + y * map.stride(2) + x * map.stride(3);
          const Delta<float> delta{static_cast<float>(source[0]), static_cast<float>(source[map.stride(1)]),
                                   static_cast<float>(source[2 * map.stride(1)]),
                                   static_cast<float>(source[3 * map.stride(1)])};
          const auto box = shift(base[a], static_cast<float>(x) * stride, static_cast<float>(y) * stride);
          const auto moved = clip(decode(box, delta, unit), image_size[2 * image], image_size[2 * image + 1]);
          const int64_t at = image * total + offset + i % count;
          store_box(box_out + 4 * at, moved);
          valid_out[at] = moved.width() > least && moved.height() > least;
        }
      });
    });
    TORCH_CHECK_INDEX(out_of_range < 0, "decode_proposals: indices of level ", level, " hold ",
                      index[out_of_range < 0 ? 0 : out_of_range.load()], ", expected 0 to ", anchors - 1);
    offset += count;
  }
  return {boxes, valid};
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CPU, m) { m.impl("decode_proposals", &decode_proposals); }

}  // namespace frcnn
