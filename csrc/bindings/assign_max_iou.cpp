#include "binding.h"

namespace frcnn {
namespace {

// Of the values, which a GPU would have to be waited for to know; there, counts are brought into range.
void check_counts_on_cpu(const char* name, const Tensor& counts, int64_t rows) {
  for (int64_t image = 0; image < counts.size(0); ++image) {
    const int64_t count = counts.const_data_ptr<int64_t>()[image];
    FRCNN_CHECK(count >= 0 && count <= rows, "assign_max_iou: ", name, " of image ", image, " is ", count,
                ", expected 0 to ", rows, ", the rows there are");
  }
}

std::tuple<Tensor, Tensor> assign_max_iou(const Tensor& boxes, const Tensor& gts, const Tensor& gt_counts,
                                          const OptionalTensor& ignore, const OptionalTensor& ignore_counts,
                                          double pos_iou, double neg_iou, double min_pos_iou,
                                          bool match_low_quality, double ignore_iof) {
  const char* op = "assign_max_iou";
  const Argument box{op, "boxes", boxes}, gt{op, "gts", gts};
  expect_shape(gt, {-1, -1, 4}, "[B, G, 4]");
  const int64_t batch = gts.size(0), g = gts.size(1);
  if (boxes.dim() == 3) {
    expect_shape(box, {batch, -1, 4}, "[N, 4], or [B, N, 4] with the B of gts");
  } else {
    expect_shape(box, {-1, 4}, "[N, 4], or [B, N, 4] with the B of gts");
  }
  expect_float(box);
  expect_like(gt, box);
  const auto expect_counts = [&](const char* name, const Tensor& counts) {
    const Argument count{op, name, counts};
    expect_shape(count, {batch}, "[B] with one count per image");
    expect_dtype(count, {ScalarType::Long}, "int64");
    expect_same_device(count, box);
  };
  expect_counts("gt_counts", gt_counts);
  FRCNN_CHECK(ignore.has_value() == ignore_counts.has_value(), op,
              ": ignore and ignore_counts come together, only one was given");
  if (ignore.has_value()) {
    const Argument region{op, "ignore", *ignore};
    expect_shape(region, {batch, -1, 4}, "[B, I, 4] with the B of gts");
    expect_like(region, box);
    expect_counts("ignore_counts", *ignore_counts);
  }
  expect_between(op, "pos_iou", pos_iou, 0, 1);
  expect_between(op, "neg_iou", neg_iou, 0, 1);
  expect_between(op, "min_pos_iou", min_pos_iou, 0, 1);
  FRCNN_CHECK(!std::isnan(ignore_iof), op, ": ignore_iof is nan, expected a number; 0 or less turns it off");

  const Device device = boxes.device();
  const OnDevice guard(device);
  expect_images(op, device, batch);
  const int64_t n = boxes.size(boxes.dim() - 2);
  const Tensor box_rows = contiguous(boxes), gt_rows = contiguous(gts), counts = contiguous(gt_counts);
  const OptionalTensor regions = contiguous_or_none(ignore),
                       region_counts = contiguous_or_none(ignore_counts);
  const int64_t i = regions ? regions->size(1) : 0;
  if (device.is_cpu()) {
    check_counts_on_cpu("gt_counts", counts, g);
    if (regions) check_counts_on_cpu("ignore_counts", *region_counts, i);
  }
  Tensor gt_index = empty({batch, n}, ScalarType::Long, boxes.device());
  Tensor max_iou = empty({batch, n}, boxes);
  const Tensor gt_best = empty({batch, g}, boxes);
  FrcnnAssignment assignment{};
  assignment.boxes = box_rows.const_data_ptr();
  assignment.gts = gt_rows.const_data_ptr();
  assignment.gt_counts = counts.const_data_ptr<int64_t>();
  assignment.ignore = pointer_or_null(regions);
  assignment.ignore_counts = pointer_or_null<int64_t>(region_counts);
  assignment.batch = batch;
  assignment.n = n;
  assignment.g = g;
  assignment.i = i;
  assignment.box_batch_stride = boxes.dim() == 3 ? n * 4 : 0;
  assignment.pos_iou = pos_iou;
  assignment.neg_iou = neg_iou;
  assignment.min_pos_iou = min_pos_iou;
  assignment.ignore_iof = ignore_iof;
  assignment.match_low_quality = match_low_quality;
  FRCNN_RUN(assign_max_iou, device, type_of(boxes), &assignment, gt_best.mutable_data_ptr(),
            gt_index.mutable_data_ptr<int64_t>(), max_iou.mutable_data_ptr());
  return {gt_index, max_iou};
}

}  // namespace

// boxes [N, 4] (shared by all images) or [B, N, 4]; gts [B, G, 4] padded, gt_counts int64 [B];
// ignore [B, I, 4] padded with ignore_counts int64 [B], or None
// -> gt_index int64 [B, N] (-1 ignored, 0 background, k+1 = gt k), max_iou [B, N]
FRCNN_OPERATOR(
    assign_max_iou,
    "assign_max_iou(Tensor boxes, Tensor gts, Tensor gt_counts, Tensor? ignore, Tensor? ignore_counts, "
    "float pos_iou, float neg_iou, float min_pos_iou, bool match_low_quality, float ignore_iof) "
    "-> (Tensor, Tensor)")

}  // namespace frcnn
