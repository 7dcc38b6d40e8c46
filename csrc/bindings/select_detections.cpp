#include "binding.h"

namespace frcnn {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> select_detections(
    const Tensor& probabilities, const Tensor& deltas, const Tensor& proposals, const Tensor& present,
    const Tensor& sizes, const Tensor& scales, Floats stds, double score_threshold, double iou_threshold,
    int64_t max_detections) {
  const char* op = "select_detections";
  const Argument probability{op, "probabilities", probabilities}, delta{op, "deltas", deltas},
      proposal{op, "proposals", proposals}, exists{op, "present", present}, size{op, "sizes", sizes},
      scale{op, "scales", scales};
  expect_shape(probability, {-1, -1, -1}, "[B, P, C + 1]");
  const int64_t batch = probabilities.size(0), count = probabilities.size(1);
  const int64_t classes = probabilities.size(2) - 1;
  FRCNN_CHECK(classes >= 0, op, ": probabilities has shape ", probabilities.sizes(),
              ", expected [B, P, C + 1] with the background last");
  expect_shape(delta, {batch, count, -1}, "[B, P, 4 * C], or [B, P, 4] for all classes");
  FRCNN_CHECK(deltas.size(2) == 4 || deltas.size(2) == 4 * classes, op, ": deltas has shape ", deltas.sizes(),
              ", expected [", batch, ", ", count, ", ", 4 * classes, "], or 4 for all ", classes, " classes");
  expect_shape(proposal, {batch, count, 4}, "[B, P, 4]");
  expect_shape(exists, {batch, count}, "[B, P]");
  expect_shape(size, {batch, 2}, "[B, 2], (height, width) of each image");
  expect_shape(scale, {batch, 2}, "[B, 2], (x, y) factors of each image");
  expect_dtype(exists, {ScalarType::Bool}, "bool");
  expect_dtype(probability, {ScalarType::Float}, "float32");
  for (const Argument& a : {delta, proposal, size, scale}) expect_like(a, probability);
  expect_same_device(exists, probability);
  expect_selection(stds, score_threshold, iou_threshold, max_detections);
  expect_elements(op, "the result", {batch, max_detections, 4});
  FRCNN_CHECK(product({count, classes}) <= kMostAlongOne, op, ": probabilities hold ", count, " x ", classes,
              " scores per image, expected at most ", kMostAlongOne);
  const Device device = probabilities.device();
  const OnDevice guard(device);
  expect_images(op, device, batch);
  expect_in_block(op, "proposals per image", device, count, "give it fewer");
  expect_in_block(op, "detections per image (max_detections)", device, max_detections,
                  "lower max_detections");

  const Tensor rows_of[] = {contiguous(probabilities), contiguous(deltas), contiguous(proposals),
                            contiguous(sizes),         contiguous(scales), contiguous(present)};
  FrcnnSelection selection{};
  selection.probabilities = rows_of[0].const_data_ptr<float>();
  selection.deltas = rows_of[1].const_data_ptr<float>();
  selection.proposals = rows_of[2].const_data_ptr<float>();
  selection.sizes = rows_of[3].const_data_ptr<float>();
  selection.scales = rows_of[4].const_data_ptr<float>();
  selection.present = rows_of[5].const_data_ptr<bool>();
  selection.stds = stds.data();
  selection.images = batch;
  selection.proposals_per_image = count;
  selection.classes = classes;
  selection.class_agnostic = deltas.size(2) != 4 * classes;
  selection.score_threshold = score_threshold;
  selection.iou_threshold = iou_threshold;
  selection.max_detections = max_detections;
  Tensor boxes = empty({batch, max_detections, 4}, probabilities);
  Tensor scores = empty({batch, max_detections}, probabilities);
  Tensor labels = empty({batch, max_detections}, ScalarType::Long, device);
  Tensor rows = empty({batch, max_detections}, ScalarType::Long, device);
  Tensor counts = empty({batch}, ScalarType::Long, device);
  Tensor memory = workspace(FRCNN_WORKSPACE_OF(select_detections, device, &selection), probabilities);
  FRCNN_RUN(select_detections, device, &selection, memory.mutable_data_ptr(), boxes.mutable_data_ptr<float>(),
            scores.mutable_data_ptr<float>(), labels.mutable_data_ptr<int64_t>(),
            rows.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>());
  return {boxes, scores, labels, rows, counts};
}

}  // namespace

// probabilities [B, P, C + 1], background last; deltas [B, P, 4 * C], or 4 for all classes; proposals
// [B, P, 4], of which those present [B, P] exist; sizes [B, 2] (h, w); scales [B, 2] (x, y); all float32
// -> boxes [B, D, 4], scores [B, D], labels and rows (into P) int64 [B, D], counts int64 [B]: best first,
// equal scores by proposal, then by class; unused: 0 and -1
FRCNN_OPERATOR(select_detections,
               "select_detections(Tensor probabilities, Tensor deltas, Tensor proposals, Tensor present, "
               "Tensor sizes, Tensor scales, float[] stds, float score_threshold, float iou_threshold, "
               "int max_detections) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")

}  // namespace frcnn
