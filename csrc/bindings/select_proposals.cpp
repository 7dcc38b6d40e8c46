#include <algorithm>

#include "anchors.h"

namespace frcnn {
namespace {

std::tuple<Tensor, Tensor> select_proposals(const Tensors& logits, const Tensors& deltas,
                                            const Tensor& image_sizes, Floats strides, Floats scales,
                                            Floats ratios, double center_offset, Floats stds, double min_size,
                                            double iou_threshold, int64_t pre_nms, int64_t count) {
  const char* op = "select_proposals";
  expect_proposals(strides, scales, ratios, center_offset, stds, min_size, iou_threshold, pre_nms, count);
  FRCNN_CHECK(logits.size() == strides.size() && deltas.size() == strides.size(), op, ": there are ",
              logits.size(), " logits, ", deltas.size(), " deltas and ", strides.size(),
              " strides, expected one of each per level");
  const Argument size{op, "image_sizes", image_sizes};
  expect_shape(size, {-1, 2}, "[B, 2], (height, width) of each image");
  expect_dtype(size, {ScalarType::Float}, "float32");
  const int64_t batch = image_sizes.size(0);
  const int64_t per_cell = static_cast<int64_t>(scales.size() * ratios.size());
  std::vector<FrcnnRPNLevel> levels;
  for (size_t l = 0; l < strides.size(); ++l) {
    const Argument logit{op, "logits", logits[l]}, delta{op, "deltas", deltas[l]};
    expect_shape(logit, {batch, per_cell, -1, -1}, "[B, ratios * scales, H, W]");
    const int64_t height = logits[l].size(2), width = logits[l].size(3);
    expect_shape(delta, {batch, 4 * per_cell, height, width}, "[B, 4 * ratios * scales, H, W]");
    expect_cells(op, "logits", height, width, per_cell);
    expect_like(logit, size);
    expect_like(delta, size);
    FrcnnRPNLevel level{
        logits[l].const_data_ptr<float>(), deltas[l].const_data_ptr<float>(), height, width, {}, {}};
    std::copy_n(logits[l].strides().begin(), 4, level.logit_strides);
    std::copy_n(deltas[l].strides().begin(), 4, level.delta_strides);
    levels.push_back(level);
  }
  expect_elements(op, "the result", {batch, count, 4});
  const Device device = image_sizes.device();
  const OnDevice guard(device);
  expect_images(op, device, batch);
  expect_in_block(op, "anchors before NMS (pre_nms)", device, pre_nms, "lower pre_nms");
  expect_in_block(op, "proposals (count)", device, count, "lower count");

  const AnchorArrays arrays(op, device, strides, scales, ratios, center_offset);
  const Tensor sizes = contiguous(image_sizes);
  FrcnnProposals proposals{};
  proposals.grid = &arrays.grid;
  proposals.levels = levels.data();
  proposals.image_sizes = sizes.const_data_ptr<float>();
  proposals.stds = stds.data();
  proposals.batch = batch;
  proposals.min_size = min_size;
  proposals.iou_threshold = iou_threshold;
  proposals.pre_nms = pre_nms;
  proposals.count = count;
  Tensor boxes = empty({batch, count, 4}, sizes);
  Tensor scores = empty({batch, count}, sizes);
  Tensor memory = workspace(FRCNN_WORKSPACE_OF(select_proposals, device, &proposals), sizes);
  FRCNN_RUN(select_proposals, device, &proposals, memory.mutable_data_ptr(), boxes.mutable_data_ptr<float>(),
            scores.mutable_data_ptr<float>());
  return {boxes, scores};
}

}  // namespace

// logits: L of [B, A, H, W], deltas: L of [B, A*4, H, W], image_sizes [B, 2] (h, w), all float32, any
// strides
// -> boxes [B, count, 4], scores (logits) [B, count]: best first, equal ones by level, then by anchor;
// unused: 0 and -inf
FRCNN_OPERATOR(select_proposals,
               "select_proposals(Tensor[] logits, Tensor[] deltas, Tensor image_sizes, float[] strides, "
               "float[] scales, float[] ratios, float center_offset, float[] stds, float min_size, "
               "float iou_threshold, int pre_nms, int count) -> (Tensor, Tensor)")

}  // namespace frcnn
