#include <algorithm>

#include "binding.h"

namespace frcnn {
namespace {

// The arguments of both directions, checked, and as the kernels read them.
struct RPNSamples {
  RPNSamples(const char* op, const Tensors& maps, const Tensor& anchors, const Tensor& gts,
             const Tensor& gt_index, const Tensor& index, const Tensor& counts, Floats stds) {
    FRCNN_CHECK(!maps.empty(), op, ": maps is empty, expected at least one level");
    const Argument first{op, "maps", maps[0]}, box{op, "anchors", anchors}, gt{op, "gts", gts},
        assigned{op, "gt_index", gt_index}, drawn{op, "index", index}, count{op, "counts", counts};
    expect_shape(gt, {-1, -1, 4}, "[B, G, 4]");
    const int64_t batch = gts.size(0);
    if (anchors.dim() == 3) {
      expect_shape(box, {batch, -1, 4}, "[N, 4], or [B, N, 4] with the B of gts");
    } else {
      expect_shape(box, {-1, 4}, "[N, 4], or [B, N, 4] with the B of gts");
    }
    const int64_t n = anchors.size(-2);
    expect_shape(assigned, {batch, n}, "[B, N] with one index per anchor");
    expect_shape(drawn, {batch, -1}, "[B, S]");
    expect_shape(count, {batch, 2}, "[B, 2], positives and negatives of each image");
    expect_dtype(first, {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16},
                 "float32, float64, float16 or bfloat16");
    expect_shape(first, {batch, -1, -1, -1}, "[B, A * 5, H, W]");
    const int64_t channels = maps[0].size(1);
    FRCNN_CHECK(channels > 0 && channels % 5 == 0, op, ": maps have ", channels,
                " channels, expected A * 5: a logit and four deltas for each anchor of a cell");
    int64_t found = 0;
    for (const Tensor& level : maps) {
      const Argument map{op, "maps", level};
      expect_shape(map, {batch, channels, -1, -1}, "[B, A * 5, H, W]");
      expect_like(map, first);
      expect_cells(op, "maps", level.size(2), level.size(3), channels / 5);
      found += level.size(2) * level.size(3) * (channels / 5);
      FrcnnRPNMap one{level.const_data_ptr(), level.size(2), level.size(3), {}};
      std::copy_n(level.strides().begin(), 4, one.strides);
      levels.push_back(one);
    }
    FRCNN_CHECK(found == n, op, ": maps have ", found, " anchors, but anchors has shape ", anchors.sizes());
    for (const Argument& a : {box, gt}) {
      expect_dtype(a, {ScalarType::Float}, "float32");
      expect_same_device(a, first);
    }
    for (const Argument& a : {assigned, drawn, count}) {
      expect_dtype(a, {ScalarType::Long}, "int64");
      expect_same_device(a, first);
    }
    expect_stds(op, stds);
    expect_at_most(op, "levels", maps[0].device(), static_cast<int64_t>(maps.size()), kFrcnnMostLevels);
    kept = {contiguous(anchors), contiguous(gts), contiguous(gt_index), contiguous(index),
            contiguous(counts)};
    samples.maps = levels.data();
    samples.anchors = kept[0].const_data_ptr<float>();
    samples.gts = kept[1].const_data_ptr<float>();
    samples.gt_index = kept[2].const_data_ptr<int64_t>();
    samples.index = kept[3].const_data_ptr<int64_t>();
    samples.counts = kept[4].const_data_ptr<int64_t>();
    samples.stds = stds.data();
    samples.levels = static_cast<int64_t>(maps.size());
    samples.per_cell = channels / 5;
    samples.batch = batch;
    samples.n = n;
    samples.g = gts.size(1);
    samples.slots = index.size(1);
    samples.anchor_stride = anchors.dim() == 3 ? n * 4 : 0;
  }

  std::vector<FrcnnRPNMap> levels;
  Tensors kept;
  FrcnnRPNSamples samples{};
};

std::tuple<Tensor, Tensor> rpn_loss(const Tensors& maps, const Tensor& anchors, const Tensor& gts,
                                    const Tensor& gt_index, const Tensor& index, const Tensor& counts,
                                    Floats stds) {
  const RPNSamples s("rpn_loss", maps, anchors, gts, gt_index, index, counts, stds);
  const Device device = maps[0].device();
  const OnDevice guard(device);
  const ScalarType type = loss_type(maps[0]);
  Tensor of_class = empty({}, type, device), of_box = empty({}, type, device);
  FRCNN_RUN(rpn_loss, device, type_of(maps[0]), &s.samples, of_class.mutable_data_ptr(),
            of_box.mutable_data_ptr());
  return {of_class, of_box};
}

Tensors rpn_loss_backward(const Tensor& by_class, const Tensor& by_box, const Tensors& maps,
                          const Tensor& anchors, const Tensor& gts, const Tensor& gt_index,
                          const Tensor& index, const Tensor& counts, Floats stds) {
  const char* op = "rpn_loss_backward";
  const RPNSamples s(op, maps, anchors, gts, gt_index, index, counts, stds);
  for (const Argument& grad : {Argument{op, "by_class", by_class}, Argument{op, "by_box", by_box}}) {
    expect_shape(grad, {}, "[], as the loss");
    expect_dtype(grad, {loss_type(maps[0])}, "the dtype of the loss");
    expect_same_device(grad, {op, "maps", maps[0]});
  }
  const Device device = maps[0].device();
  const OnDevice guard(device);
  // one piece of memory, so that it is cleared at once
  const int64_t channels = s.samples.per_cell * 5;
  Tensor all = empty({s.samples.batch * s.samples.n * 5}, maps[0]);
  torch::stable::zero_(all);
  Tensors grads;
  std::vector<void*> places;
  int64_t begin = 0;
  for (const Tensor& map : maps) {
    const int64_t height = map.size(2), width = map.size(3);
    const Tensor rows = torch::stable::view(torch::stable::narrow(all, 0, begin, map.numel()),
                                            {s.samples.batch, height, width, channels});
    grads.push_back(torch::stable::transpose(torch::stable::transpose(rows, 1, 3), 2, 3));
    places.push_back(grads.back().mutable_data_ptr());
    begin += map.numel();
  }
  FRCNN_RUN(rpn_loss_backward, device, type_of(maps[0]), &s.samples, by_class.const_data_ptr(),
            by_box.const_data_ptr(), places.data());
  return grads;
}

}  // namespace

// maps: L of [B, A * 5, H, W], logits, then deltas, any strides and floating type; anchors [N, 4] or
// [B, N, 4], gts [B, G, 4] float32; gt_index [B, N], index [B, S], counts [B, 2] int64 -> loss of the
// logits, loss of the deltas, both []; float64 for float64 maps, otherwise float32
FRCNN_OPERATOR(
    rpn_loss,
    "rpn_loss(Tensor[] maps, Tensor anchors, Tensor gts, Tensor gt_index, Tensor index, Tensor counts, "
    "float[] stds) -> (Tensor, Tensor)")
// -> L of [B, A * 5, H, W], channels last, in one piece of memory
FRCNN_OPERATOR(rpn_loss_backward,
               "rpn_loss_backward(Tensor by_class, Tensor by_box, Tensor[] maps, Tensor anchors, Tensor gts, "
               "Tensor gt_index, Tensor index, Tensor counts, float[] stds) -> Tensor[]")

}  // namespace frcnn
