#include <algorithm>

#include "anchors.h"

namespace frcnn {
namespace {

// Of the values, which a GPU would have to be waited for to know: there, a bad index makes an invalid
// proposal.
void check_indices_on_cpu(const at::Tensor& indices, int64_t level, int64_t anchors) {
  const int64_t* first = indices.const_data_ptr<int64_t>();
  const int64_t* last = first + indices.numel();
  const auto bad = std::find_if(first, last, [&](int64_t index) { return index < 0 || index >= anchors; });
  TORCH_CHECK_INDEX(bad == last, "decode_proposals: indices of level ", level, " hold ", *bad,
                    ", expected 0 to ", anchors - 1);
}

std::tuple<at::Tensor, at::Tensor> decode_proposals(at::TensorList deltas, at::TensorList indices,
                                                    const at::Tensor& image_sizes,
                                                    at::ArrayRef<double> strides, at::ArrayRef<double> scales,
                                                    at::ArrayRef<double> ratios, double center_offset,
                                                    at::ArrayRef<double> stds, double min_size) {
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
  int64_t rows = 0;
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
    rows += indices[level].size(1);
  }
  TORCH_CHECK(product({batch, rows}) <= kMostAlongOne, op, ": indices choose ", rows, " anchors of each of ",
              batch, " images, expected at most ", kMostAlongOne, " in all; split the call");
  expect_anchors(op, strides, scales, ratios, center_offset);
  expect_stds(op, stds);
  TORCH_CHECK(min_size >= 0, op, ": min_size is ", min_size, ", expected a number of pixels, 0 or more");

  const at::Device device = image_sizes.device();
  const c10::DeviceGuard guard(device);
  const AnchorArrays arrays(op, device, strides, scales, ratios, center_offset);
  const at::Tensor sizes = image_sizes.contiguous();
  std::vector<at::Tensor> index_rows;
  std::vector<FrcnnProposalLevel> levels;
  for (size_t l = 0; l < deltas.size(); ++l) {
    const at::Tensor& d = deltas[l];
    index_rows.push_back(indices[l].contiguous());
    if (device.is_cpu()) check_indices_on_cpu(index_rows[l], l, d.size(2) * d.size(3) * per_cell);
    levels.push_back({d.const_data_ptr(), index_rows[l].const_data_ptr<int64_t>(), d.size(2), d.size(3),
                      indices[l].size(1), d.stride(0), d.stride(1), d.stride(2), d.stride(3)});
  }
  at::Tensor boxes = at::empty({batch, rows, 4}, sizes.options());
  at::Tensor valid = at::empty({batch, rows}, sizes.options().dtype(at::kBool));
  FRCNN_RUN(decode_proposals, device, type_of(deltas[0]), &arrays.grid, levels.data(),
            sizes.const_data_ptr<float>(), batch, stds.data(), min_size, boxes.mutable_data_ptr<float>(),
            valid.mutable_data_ptr<bool>());
  return {boxes, valid};
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // The selected anchors of every level and image, decoded, clipped and filtered; anchors are computed, not
  // read. deltas: L of [B, A*4, H, W]; indices: L of int64 [B, k] into the level's H*W*A position-major
  // anchors; image_sizes [B, 2] float32 (h, w) -> boxes [B, sum k, 4] float32, valid [B, sum k] bool (valid:
  // width and height both > min_size)
  define(m,
         "decode_proposals(Tensor[] deltas, Tensor[] indices, Tensor image_sizes, float[] strides, "
         "float[] scales, float[] ratios, float center_offset, float[] stds, float min_size) "
         "-> (Tensor, Tensor)",
         &decode_proposals);
}

}  // namespace
}  // namespace frcnn
