// The Python module: what was built, and checks for the fake kernels and the reference. The operators'
// schemas are in the other files of this folder; fakes, autograd and documentation lie beside the Python call
// in frcnn_ops/<op>.py.
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "expect.h"

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
  frcnn::expect_grid("grid_anchors", sizes, strides, scales, ratios, center_offset);
}
void check_pooling(Name op, Ints bins, Floats scales, int64_t sampling_ratio, double finest_scale) {
  frcnn::expect_bins(op.c_str(), "output_size", bins);
  frcnn::expect_pooling(op.c_str(), scales, sampling_ratio, finest_scale);
}
void check_proposals(Floats strides, Floats scales, Floats ratios, double center_offset, Floats stds,
                     double min_size, double iou_threshold, int64_t pre_nms, int64_t count) {
  frcnn::expect_proposals(strides, scales, ratios, center_offset, stds, min_size, iou_threshold, pre_nms,
                          count);
}
void check_selection(Floats stds, double score_threshold, double iou_threshold, int64_t max_detections) {
  frcnn::expect_selection(stds, score_threshold, iou_threshold, max_detections);
}
void check_normalization(Floats mean, Floats std) { frcnn::expect_normalization(mean, std); }
void check_resize(Ints sizes, int64_t images, int64_t height, int64_t width) {
  frcnn::expect_resize(sizes, images, height, width);
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
  m.def("check_pooling", for_python(&check_pooling));
  m.def("check_maps", for_python(&check_maps));
  m.def("check_max_keep", for_python(&frcnn::expect_max_keep));
  m.def("check_proposals", for_python(&check_proposals));
  m.def("check_normalization", for_python(&check_normalization));
  m.def("check_resize", for_python(&check_resize));
  m.def("check_selection", for_python(&check_selection));
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
