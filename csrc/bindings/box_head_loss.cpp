#include "../box.h"
#include "binding.h"

namespace frcnn {
namespace {

int64_t box_mode_of(const char* op, std::string_view mode) {
  constexpr std::pair<std::string_view, int64_t> modes[] = {
      {"l1", kFrcnnL1},
      {"iou", static_cast<int64_t>(IouLoss::kLog)},
      {"giou", static_cast<int64_t>(IouLoss::kGiou)},
      {"diou", static_cast<int64_t>(IouLoss::kDiou)},
      {"ciou", static_cast<int64_t>(IouLoss::kCiou)},
      {"bounded_iou", static_cast<int64_t>(IouLoss::kBounded)}};
  for (const auto& [name, value] : modes) {
    if (name == mode) return value;
  }
  FRCNN_CHECK(false, op, ": mode is \"", std::string(mode),
              "\", expected l1, iou, giou, diou, ciou or bounded_iou");
}

// The arguments of both directions, checked, and as the kernels read them.
struct BoxSamples {
  BoxSamples(const char* op, const Tensor& outputs, const Tensor& labels, const Tensor& rois,
             const Tensor& targets, const Tensor& counts, Floats stds, int64_t classes, std::string_view mode,
             double weight) {
    const Argument output{op, "outputs", outputs}, label{op, "labels", labels}, roi{op, "rois", rois},
        target{op, "targets", targets}, count{op, "counts", counts};
    expect_shape(label, {-1, -1}, "[B, S]");
    const int64_t batch = labels.size(0), slots = labels.size(1);
    expect_shape(roi, {batch, slots, 5}, "[B, S, 5], one RoI for each label");
    expect_shape(target, {batch, slots, 4}, "[B, S, 4], one target for each label");
    expect_shape(count, {batch, 2}, "[B, 2], positives and negatives of each image");
    expect_count(op, "classes", classes, 1, 1 << 28);
    expect_shape(output, {batch * slots, -1}, "[B * S, C + 1 + 4 * C], or [B * S, C + 1 + 4]");
    const int64_t length = outputs.size(1);
    FRCNN_CHECK(length == 5 * classes + 1 || length == classes + 5, op, ": outputs has shape ",
                outputs.sizes(), ", expected ", 5 * classes + 1, " numbers for each box, or ", classes + 5,
                " with deltas for all ", classes, " classes");
    expect_dtype(output, {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16},
                 "float32, float64, float16 or bfloat16");
    for (const Argument& a : {roi, target}) {
      expect_dtype(a, {ScalarType::Float}, "float32");
      expect_same_device(a, output);
    }
    for (const Argument& a : {label, count}) {
      expect_dtype(a, {ScalarType::Long}, "int64");
      expect_same_device(a, output);
    }
    expect_stds(op, stds);
    expect_between(op, "weight", weight, 0, std::numeric_limits<float>::max());
    kept = {contiguous(outputs), contiguous(labels), contiguous(rois), contiguous(targets),
            contiguous(counts)};
    samples.outputs = kept[0].const_data_ptr();
    samples.labels = kept[1].const_data_ptr<int64_t>();
    samples.boxes = kept[2].const_data_ptr<float>();
    if (labels.numel() > 0) ++samples.boxes;  // behind the image's number
    samples.targets = kept[3].const_data_ptr<float>();
    samples.counts = kept[4].const_data_ptr<int64_t>();
    samples.stds = stds.data();
    samples.rows = batch * slots;
    samples.slots = slots;
    samples.classes = classes;
    samples.box_stride = 5;
    samples.mode = box_mode_of(op, mode);
    samples.class_agnostic = length != 5 * classes + 1;
    samples.eps = samples.mode == static_cast<int64_t>(IouLoss::kBounded) ? 1e-3 : 1e-6;
    samples.beta = 0.2;
    samples.weight = weight;
  }

  Tensors kept;
  FrcnnBoxSamples samples{};
};

std::tuple<Tensor, Tensor, Tensor> box_head_loss(const Tensor& outputs, const Tensor& labels,
                                                 const Tensor& rois, const Tensor& targets,
                                                 const Tensor& counts, Floats stds, int64_t classes,
                                                 std::string_view mode, double weight) {
  const BoxSamples s("box_head_loss", outputs, labels, rois, targets, counts, stds, classes, mode, weight);
  const Device device = outputs.device();
  const OnDevice guard(device);
  const ScalarType type = loss_type(outputs);
  Tensor of_class = empty({}, type, device), of_box = empty({}, type, device),
         accuracy = empty({}, type, device);
  const Tensor memory = workspace(FRCNN_WORKSPACE_OF(box_head_loss, device, &s.samples), outputs);
  FRCNN_RUN(box_head_loss, device, type_of(outputs), &s.samples, memory.mutable_data_ptr(),
            of_class.mutable_data_ptr(), of_box.mutable_data_ptr(), accuracy.mutable_data_ptr());
  return {of_class, of_box, accuracy};
}

Tensor box_head_loss_backward(const Tensor& by_class, const Tensor& by_box, const Tensor& outputs,
                              const Tensor& labels, const Tensor& rois, const Tensor& targets,
                              const Tensor& counts, Floats stds, int64_t classes, std::string_view mode,
                              double weight) {
  const char* op = "box_head_loss_backward";
  const BoxSamples s(op, outputs, labels, rois, targets, counts, stds, classes, mode, weight);
  for (const Argument& grad : {Argument{op, "by_class", by_class}, Argument{op, "by_box", by_box}}) {
    expect_shape(grad, {}, "[], as the loss");
    expect_dtype(grad, {loss_type(outputs)}, "the dtype of the loss");
    expect_same_device(grad, {op, "outputs", outputs});
  }
  const Device device = outputs.device();
  const OnDevice guard(device);
  Tensor grad = empty(outputs.sizes(), outputs);
  FRCNN_RUN(box_head_loss_backward, device, type_of(outputs), &s.samples, by_class.const_data_ptr(),
            by_box.const_data_ptr(), grad.mutable_data_ptr());
  return grad;
}

}  // namespace

// outputs [B * S, C + 1 + 4 * C], or C + 1 + 4, any floating type: logits, background last, then deltas;
// labels int64 [B, S], rois [B, S, 5], targets [B, S, 4], counts int64 [B, 2]
// mode: "l1" | "iou" | "giou" | "diou" | "ciou" | "bounded_iou"
// -> loss of the logits, weighted loss of the deltas, percentage of right classes, all []; float64 for
// float64 outputs, otherwise float32
FRCNN_OPERATOR(box_head_loss,
               "box_head_loss(Tensor outputs, Tensor labels, Tensor rois, Tensor targets, Tensor counts, "
               "float[] stds, int classes, str mode, float weight) -> (Tensor, Tensor, Tensor)")
FRCNN_OPERATOR(
    box_head_loss_backward,
    "box_head_loss_backward(Tensor by_class, Tensor by_box, Tensor outputs, Tensor labels, Tensor rois, "
    "Tensor targets, Tensor counts, float[] stds, int classes, str mode, float weight) -> Tensor")

}  // namespace frcnn
