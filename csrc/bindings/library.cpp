// The Python module, and what Python asks of it beside the operators: what was built, and checks of numbers
// for the fake kernels and the reference. Those are C functions, which ctypes calls; the operators register
// themselves when the module is loaded.
#include <Python.h>

#include "expect.h"
#include "winograd.h"

#if defined(_WIN32)
#define FRCNN_EXPORT extern "C" __declspec(dllexport)
#else
#define FRCNN_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

// What is wrong, or null. The text lives until the thread's next question.
template <typename Check>
const char* complaint(const Check& check) {
  thread_local std::string text;
  try {
    check();
  } catch (const std::exception& error) {
    text = error.what();
    return text.c_str();
  }
  return nullptr;
}

// A list of Python's as ctypes hands it over.
template <typename T>
struct List {
  const T* data;
  int64_t size;
  operator torch::headeronly::HeaderOnlyArrayRef<T>() const { return {data, static_cast<size_t>(size)}; }
};
using Ints = List<int64_t>;
using Floats = List<double>;

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
#define FRCNN_TEXT_OF(x) #x
#define FRCNN_TEXT(x) FRCNN_TEXT_OF(x)
  return "msvc " FRCNN_TEXT(_MSC_VER);
#else
  return "unknown";
#endif
}

}  // namespace

FRCNN_EXPORT const char* frcnn_check_grid_anchors(Ints sizes, Floats strides, Floats scales, Floats ratios,
                                                  double center_offset) {
  return complaint(
      [&] { frcnn::expect_grid("grid_anchors", sizes, strides, scales, ratios, center_offset); });
}
FRCNN_EXPORT const char* frcnn_check_pooling(const char* op, Ints bins, Floats scales, int64_t sampling_ratio,
                                             double finest_scale) {
  return complaint([&] {
    frcnn::expect_bins(op, "output_size", bins);
    frcnn::expect_pooling(op, scales, sampling_ratio, finest_scale);
  });
}
FRCNN_EXPORT const char* frcnn_check_maps(const char* op, Ints sizes, int64_t levels, int64_t batch) {
  return complaint([&] { frcnn::expect_maps(op, sizes, static_cast<size_t>(levels), batch); });
}
FRCNN_EXPORT const char* frcnn_check_max_keep(int64_t max_keep) {
  return complaint([&] { frcnn::expect_max_keep(max_keep); });
}
FRCNN_EXPORT const char* frcnn_check_proposals(Floats strides, Floats scales, Floats ratios,
                                               double center_offset, Floats stds, double min_size,
                                               double iou_threshold, int64_t pre_nms, int64_t count) {
  return complaint([&] {
    frcnn::expect_proposals(strides, scales, ratios, center_offset, stds, min_size, iou_threshold, pre_nms,
                            count);
  });
}
FRCNN_EXPORT const char* frcnn_check_selection(Floats stds, double score_threshold, double iou_threshold,
                                               int64_t max_detections) {
  return complaint([&] { frcnn::expect_selection(stds, score_threshold, iou_threshold, max_detections); });
}
FRCNN_EXPORT const char* frcnn_check_samples(const char* op, int64_t samples, int64_t most_positive) {
  return complaint([&] { frcnn::expect_samples(op, samples, most_positive); });
}
FRCNN_EXPORT const char* frcnn_check_normalization(Floats mean, Floats std, int64_t rgb) {
  return complaint([&] { frcnn::expect_normalization(mean, std, rgb != 0); });
}
FRCNN_EXPORT const char* frcnn_check_resize(Ints sizes, int64_t images, int64_t height, int64_t width) {
  return complaint([&] { frcnn::expect_resize(sizes, images, height, width); });
}

// What is missing, or null.
FRCNN_EXPORT const char* frcnn_check_winograd() {
  return complaint([] { FRCNN_CHECK(frcnn::winograd_lanes(), "winograd_conv", frcnn::kWinogradNeeds); });
}

// setup.py defines FRCNN_TORCH_VERSION, FRCNN_CUDA_VERSION and FRCNN_CUDA_ARCHS; the last two are empty
// strings in a build without CUDA.
FRCNN_EXPORT const char* frcnn_build_info(const char* name) {
  const std::string asked = name;
  if (asked == "torch") return FRCNN_TORCH_VERSION;
  if (asked == "cuda") return FRCNN_CUDA_VERSION;
  if (asked == "cuda_archs") return FRCNN_CUDA_ARCHS;
  return compiler();
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition{PyModuleDef_HEAD_INIT,
                                "_C",
                                "Compiled operators, registered under torch.ops.frcnn_ops.",
                                -1,
                                nullptr,
                                nullptr,
                                nullptr,
                                nullptr,
                                nullptr};
  return PyModule_Create(&definition);
}
