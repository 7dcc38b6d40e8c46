// The contents page: every operator's schema, with shapes. Kernels register
// themselves under cpu/ and cuda/; fakes, autograd and documentation live beside
// the Python call in frcnn_ops/<op>.py.
//
// Boxes are float (x1, y1, x2, y2) in pixels. N, M, K count boxes, S segments,
// B images, G ground-truth boxes, L pyramid levels, A anchors per position.
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.h"

TORCH_LIBRARY(frcnn_ops, m) {
  // sizes: H0, W0, H1, W1, ...; strides: one per level -> [sum H*W*A, 4], position-major, levels in order
  m.def(
      "grid_anchors(int[] sizes, float[] strides, float[] scales, float[] ratios, float center_offset, "
      "Device device) -> Tensor");

  // a [N, 4], b [M, 4] -> [N, M]
  m.def("box_iou(Tensor a, Tensor b) -> Tensor");

  // boxes [N, 4], targets [N, 4] -> deltas [N, 4]
  m.def("encode_boxes(Tensor boxes, Tensor targets, float[] stds) -> Tensor");
  // boxes [N, 4], deltas [N, 4*C] -> [N, 4*C]; max_shape (H, W) clips to the image
  m.def("decode_boxes(Tensor boxes, Tensor deltas, float[] stds, int[]? max_shape) -> Tensor");
  m.def(
      "decode_boxes_backward(Tensor grad, Tensor boxes, Tensor deltas, float[] stds, int[]? max_shape) "
      "-> Tensor");

  // The selected anchors of every level and image, decoded, clipped and filtered; anchors are computed, not
  // read. deltas: L of [B, A*4, H, W]; indices: L of int64 [B, k] into the level's H*W*A position-major
  // anchors; image_sizes [B, 2] float32 (h, w) -> boxes [B, sum k, 4] float32, valid [B, sum k] bool (valid:
  // width and height both > min_size)
  m.def(
      "decode_proposals(Tensor[] deltas, Tensor[] indices, Tensor image_sizes, float[] strides, float[] "
      "scales, "
      "float[] ratios, float center_offset, float[] stds, float min_size) -> (Tensor, Tensor)");

  // features: L of [B, C, H, W]; rois [K, 5] (image, x1, y1, x2, y2); scales: 1 / stride per level
  // -> [K, C, h, w]. With L > 1 the level is clamp(floor(log2(sqrt(w*h) / finest_scale + 1e-6)), 0, L-1).
  // The result has the memory format of the features (channels-last stays channels-last).
  m.def(
      "roi_align(Tensor[] features, Tensor rois, int[] output_size, float[] scales, int sampling_ratio, "
      "bool aligned, float finest_scale) -> Tensor");
  // sizes: H0, W0, H1, W1, ... -> L of [batch, C, H, W]; bitwise deterministic
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, int[] sizes, int batch, float[] scales, int "
      "sampling_ratio, "
      "bool aligned, float finest_scale) -> Tensor[]");

  // boxes [N, 4], scores [N], groups int64 [N]: boxes of different groups never suppress each other
  // -> kept indices int64, best first; equal scores keep the lower index first; suppressed if IoU > threshold
  m.def("nms(Tensor boxes, Tensor scores, Tensor? groups, float iou_threshold) -> Tensor");
  // boxes [S, N, 4], scores [S, N] (-inf marks an absent box) -> indices int64 [S, max_keep] best first and
  // padded with -1, counts int64 [S]; no data-dependent shape, no synchronisation
  m.def("nms_padded(Tensor boxes, Tensor scores, float iou_threshold, int max_keep) -> (Tensor, Tensor)");

  // 3x3, stride 1, padding 1: x [B, C, H, W], weight [K / 32, 36, C, 32] (transformed), bias [K],
  // add [B, K, H, W] -> [B, K, H, W] channels-last; CPU only, inference only
  m.def("winograd_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? add, bool relu) -> Tensor");

  // pred [N, 4] boxes, or deltas against `boxes` [N, 4] when given; target [N, 4] boxes;
  // weight [N] or None; "mean" divides by the number of elements (weights do not count)
  // mode: "log" | "linear" | "square" | "giou" | "diou" | "ciou" | "bounded"; reduction: "none" | "sum" |
  // "mean"
  // -> [N] ([N, 4] for "bounded"), or a scalar
  m.def(
      "iou_loss(Tensor pred, Tensor target, Tensor? weight, Tensor? boxes, float[] stds, str mode, float "
      "eps, "
      "float beta, str reduction) -> Tensor");
  m.def(
      "iou_loss_backward(Tensor grad, Tensor pred, Tensor target, Tensor? weight, Tensor? boxes, float[] "
      "stds, "
      "str mode, float eps, float beta, str reduction) -> Tensor");

  // boxes [N, 4] (shared by all images) or [B, N, 4]; gts [B, G, 4] padded, gt_counts int64 [B];
  // ignore [B, I, 4] padded with ignore_counts int64 [B], or None
  // -> gt_index int64 [B, N] (-1 ignored, 0 background, k+1 = gt k), max_iou [B, N]
  m.def(
      "assign_max_iou(Tensor boxes, Tensor gts, Tensor gt_counts, Tensor? ignore, Tensor? ignore_counts, "
      "float pos_iou, float neg_iou, float min_pos_iou, bool match_low_quality, float ignore_iof) "
      "-> (Tensor, Tensor)");
}

namespace {

// Device types ("cpu", "cuda") that have a kernel, for each operator.
std::map<std::string, std::vector<std::string>> registered_ops() {
  std::map<std::string, std::vector<std::string>> ops;
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("frcnn_ops::", 0) != 0) continue;
    const auto op = dispatcher.findOp(name);
    if (!op) continue;
    auto& devices = ops[name.name.substr(sizeof("frcnn_ops::") - 1)];
    if (op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) devices.push_back("cpu");
    if (op->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) devices.push_back("cuda");
  }
  return ops;
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

// A check as a Python function, whose error is the message alone.
template <typename... Args>
auto for_python(void (*check)(Args...)) {
  return [check](Args... args) {
    try {
      check(args...);
    } catch (const c10::Error& error) {
      throw std::runtime_error(error.what_without_backtrace());
    }
  };
}

using Name = const std::string&;
using Ints = const std::vector<int64_t>&;
using Floats = const std::vector<double>&;

void check_grid_anchors(Ints sizes, Floats strides, Floats scales, Floats ratios, double center_offset) {
  frcnn::check_grid_anchors(sizes, strides, scales, ratios, center_offset);
}
void check_anchors(Name op, Floats strides, Floats scales, Floats ratios, double center_offset) {
  frcnn::expect_anchors(op.c_str(), strides, scales, ratios, center_offset);
}
void check_pooling(Name op, Ints bins, Floats scales, int64_t sampling_ratio, double finest_scale) {
  frcnn::expect_bins(op.c_str(), "output_size", bins);
  frcnn::expect_pooling(op.c_str(), scales, sampling_ratio, finest_scale);
}
void check_maps(Name op, Ints sizes, size_t levels, int64_t batch) {
  frcnn::expect_maps(op.c_str(), sizes, levels, batch);
}

}  // namespace

// setup.py defines FRCNN_TORCH_VERSION, FRCNN_CUDA_VERSION and FRCNN_CUDA_ARCHS; the last two are empty
// strings in a build without CUDA.
PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Compiled operators, registered under torch.ops.frcnn_ops. The module itself tells what was built, and "
      "checks numbers for the fake kernels and the reference.";
  m.def("check_grid_anchors", for_python(&check_grid_anchors));
  m.def("check_anchors", for_python(&check_anchors));
  m.def("check_pooling", for_python(&check_pooling));
  m.def("check_maps", for_python(&check_maps));
  m.def("check_max_keep", for_python(&frcnn::expect_max_keep));
  m.def("build_info", [] {
    pybind11::dict info;
    info["torch"] = FRCNN_TORCH_VERSION;
    info["compiler"] = compiler();
    info["cuda"] = FRCNN_CUDA_VERSION;
    info["cuda_archs"] = FRCNN_CUDA_ARCHS;
    info["ops"] = registered_ops();
    return info;
  });
}
