#include "binding.h"

namespace frcnn {
namespace {

// Of the values, which a GPU would have to be waited for to know; there, counts are brought into range.
void check_counts_on_cpu(const char* name, const at::Tensor& counts, int64_t rows) {
  for (int64_t image = 0; image < counts.size(0); ++image) {
    const int64_t count = counts.const_data_ptr<int64_t>()[image];
    TORCH_CHECK(count >= 0 && count <= rows, "assign_max_iou: ", name, " of image ", image, " is ", count,
                ", expected 0 to ", rows, ", the rows there are");
  }
}

std::tuple<at::Tensor, at::Tensor> assign_max_iou(const at::Tensor& boxes, const at::Tensor& gts,
                                                  const at::Tensor& gt_counts,
                                                  const std::optional<at::Tensor>& ignore,
                                                  const std::optional<at::Tensor>& ignore_counts,
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
  const auto expect_counts = [&](const char* name, const at::Tensor& counts) {
    const Argument count{op, name, counts};
    expect_shape(count, {batch}, "[B] with one count per image");
    expect_dtype(count, {at::kLong}, "int64");
    expect_same_device(count, box);
  };
  expect_counts("gt_counts", gt_counts);
  TORCH_CHECK(ignore.has_value() == ignore_counts.has_value(), op,
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
  TORCH_CHECK(!std::isnan(ignore_iof), op, ": ignore_iof is nan, expected a number; 0 or less turns it off");

  const at::Device device = boxes.device();
  const c10::DeviceGuard guard(device);
  expect_at_most(op, "images", device, batch, 65535);
  const int64_t n = boxes.size(-2);
  const at::Tensor box_rows = boxes.contiguous(), gt_rows = gts.contiguous(), counts = gt_counts.contiguous();
  const at::Tensor regions = contiguous_or_none(ignore), region_counts = contiguous_or_none(ignore_counts);
  const int64_t i = regions.defined() ? regions.size(1) : 0;
  if (device.is_cpu()) {
    check_counts_on_cpu("gt_counts", counts, g);
    if (regions.defined()) check_counts_on_cpu("ignore_counts", region_counts, i);
  }
  at::Tensor gt_index = at::empty({batch, n}, boxes.options().dtype(at::kLong));
  at::Tensor max_iou = at::empty({batch, n}, boxes.options());
  const at::Tensor gt_best = at::empty({batch, g}, boxes.options());
  FRCNN_RUN(assign_max_iou, device, type_of(boxes), box_rows.const_data_ptr(), boxes.dim() == 3 ? n * 4 : 0,
            n, gt_rows.const_data_ptr(), counts.const_data_ptr<int64_t>(), batch, g, pointer_or_null(regions),
            pointer_or_null<int64_t>(region_counts), i, pos_iou, neg_iou, min_pos_iou, match_low_quality,
            ignore_iof, gt_best.mutable_data_ptr(), gt_index.mutable_data_ptr<int64_t>(),
            max_iou.mutable_data_ptr());
  return {gt_index, max_iou};
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // boxes [N, 4] (shared by all images) or [B, N, 4]; gts [B, G, 4] padded, gt_counts int64 [B];
  // ignore [B, I, 4] padded with ignore_counts int64 [B], or None
  // -> gt_index int64 [B, N] (-1 ignored, 0 background, k+1 = gt k), max_iou [B, N]
  define(m,
         "assign_max_iou(Tensor boxes, Tensor gts, Tensor gt_counts, Tensor? ignore, Tensor? ignore_counts, "
         "float pos_iou, float neg_iou, float min_pos_iou, bool match_low_quality, float ignore_iof) "
         "-> (Tensor, Tensor)",
         &assign_max_iou);
}

}  // namespace
}  // namespace frcnn
