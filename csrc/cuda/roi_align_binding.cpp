// roi_align and its backward for torch.
#include "binding.h"

namespace frcnn {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

void expect_pooling_fits(const char* op, size_t levels, int64_t height, int64_t width) {
  expect_at_most(op, "levels", levels, kFrcnnMostLevels);
  TORCH_CHECK(height + width <= kFrcnnMostBins, op, ": output_size (", height, ", ", width,
              ") is larger than the CUDA kernel takes (height + width at most ", int{kFrcnnMostBins}, ")");
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, at::IntArrayRef output_size,
                     at::ArrayRef<double> scales, int64_t sampling_ratio, bool aligned, double finest_scale) {
  check_roi_align(features, rois, output_size, scales, sampling_ratio, finest_scale);
  expect_pooling_fits("roi_align", features.size(), output_size[0], output_size[1]);
  const at::Tensor& first = features[0];
  const CUDAGuard guard(first.device());
  const bool channels_last = first.is_contiguous(kChannelsLast) && !first.is_contiguous();
  const auto format = channels_last ? kChannelsLast : at::MemoryFormat::Contiguous;
  std::vector<at::Tensor> maps;
  std::vector<const void*> pointers;
  std::vector<int64_t> sizes;
  for (const at::Tensor& feature : features) {
    maps.push_back(feature.contiguous(format));
    pointers.push_back(maps.back().const_data_ptr());
    sizes.insert(sizes.end(), {feature.size(2), feature.size(3)});
  }
  const at::Tensor rows = rois.contiguous();
  at::Tensor out = at::empty({rois.size(0), first.size(1), output_size[0], output_size[1]},
                             first.options().memory_format(format));
  const FrcnnRoiAlign pooling{sizes.data(),   scales.data(),  static_cast<int64_t>(scales.size()),
                              first.size(0),  first.size(1),  rois.size(0),
                              output_size[0], output_size[1], sampling_ratio,
                              aligned,        channels_last,  finest_scale};
  expect_launched("roi_align", frcnn_cuda_roi_align(type_of(first), &pooling, pointers.data(),
                                                    rows.const_data_ptr(), out.mutable_data_ptr(), stream()));
  return out;
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& rois,
                                           at::IntArrayRef sizes, int64_t batch, at::ArrayRef<double> scales,
                                           int64_t sampling_ratio, bool aligned, double finest_scale) {
  check_roi_align_backward(grad, rois, sizes, batch, scales, sampling_ratio, finest_scale);
  expect_pooling_fits("roi_align_backward", scales.size(), grad.size(2), grad.size(3));
  const CUDAGuard guard(grad.device());
  const at::Tensor source = grad.contiguous(kChannelsLast), rows = rois.contiguous();
  std::vector<at::Tensor> grads;
  std::vector<void*> pointers;
  for (size_t l = 0; l < scales.size(); ++l) {
    grads.push_back(at::empty({batch, grad.size(1), sizes[2 * l], sizes[2 * l + 1]},
                              grad.options().memory_format(kChannelsLast)));
    pointers.push_back(grads.back().mutable_data_ptr());
  }
  const FrcnnRoiAlign pooling{sizes.data(), scales.data(), static_cast<int64_t>(scales.size()),
                              batch,        grad.size(1),  rois.size(0),
                              grad.size(2), grad.size(3),  sampling_ratio,
                              aligned,      true,          finest_scale};
  const at::Tensor memory = workspace(frcnn_cuda_roi_align_backward_workspace(&pooling), grad);
  expect_launched(
      "roi_align_backward",
      frcnn_cuda_roi_align_backward(type_of(grad), &pooling, source.const_data_ptr(), rows.const_data_ptr(),
                                    memory.mutable_data_ptr(), pointers.data(), stream()));
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CUDA, m) {
  m.impl("roi_align", &roi_align);
  m.impl("roi_align_backward", &roi_align_backward);
}

}  // namespace frcnn
