#include <algorithm>

#include "../bilinear.h"
#include "binding.h"

namespace frcnn {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// RoIs are never rounded to half: float32 goes with half features, float64 with float64 features.
void expect_rois(const Argument& rois, const Argument& features) {
  expect_shape(rois, {-1, 5}, "[K, 5]: image index, x1, y1, x2, y2");
  const bool wide = features.tensor.scalar_type() == at::kDouble;
  expect_dtype(rois, {wide ? at::kDouble : at::kFloat},
               wide ? "float64, as the features" : "float32, whatever the features are");
  expect_same_device(rois, features);
}

void expect_pooling_fits(const char* op, at::Device device, int64_t levels, int64_t height, int64_t width) {
  expect_at_most(op, "levels", device, levels, kFrcnnMostLevels);
  TORCH_CHECK(!device.is_cuda() || height + width <= kFrcnnMostBins, op, ": output_size (", height, ", ",
              width, ") is larger than the CUDA kernel takes (height + width at most ", int{kFrcnnMostBins},
              ")");
}

// The gradient's kernel has a block for each tile of each map.
void expect_tiles_fit(const char* op, at::Device device, at::IntArrayRef sizes, int64_t batch,
                      int64_t channels) {
  expect_at_most(op, "channels of grad", device, channels, kFrcnnMostChannels);
  int64_t tiles = 0;
  for (size_t i = 0; i < sizes.size(); i += 2)
    tiles +=
        product({(sizes[i] + kFrcnnTile - 1) / kFrcnnTile, (sizes[i + 1] + kFrcnnTile - 1) / kFrcnnTile});
  expect_at_most(op, "tiles of 8 x 8 cells in the maps of batch images", device, product({tiles, batch}),
                 kMostAlongOne);
}

// Of the values, which a GPU would have to be waited for to know: there, such an RoI pools to zero.
void check_images_on_cpu(const at::Tensor& rois, int64_t batch) {
  const at::Tensor images = rois.select(1, 0).to(at::kDouble).contiguous();
  for (int64_t k = 0; k < images.size(0); ++k) {
    const double image = images.const_data_ptr<double>()[k];
    TORCH_CHECK_INDEX(image >= 0 && image < static_cast<double>(batch), "roi_align: rois[", k,
                      "] belongs to image ", image, ", but the features are a batch of ", batch);
  }
}

// On a CPU: whether NCHW maps had better be copied to channels-last, which is read more than twice as fast.
// With few RoIs the copy would take longer; measured, it pays for twice as many cells under RoIs as the maps
// have.
bool copies_pay(at::TensorList features, const at::Tensor& rois, at::ArrayRef<double> scales,
                double finest_scale) {
  const at::Tensor own = rois.to(at::kDouble);
  const double* roi = own.const_data_ptr<double>();
  double cells = 0, covered = 0;
  for (const at::Tensor& map : features) cells += static_cast<double>(map.size(2) * map.size(3));
  for (int64_t k = 0; k < own.size(0); ++k, roi += 5) {
    const int level =
        roi_level(roi[1], roi[2], roi[3], roi[4], finest_scale, static_cast<int>(scales.size()));
    const auto along = [&](double low, double high, int64_t size) {
      return std::min(static_cast<double>(size), std::abs(high - low) * scales[level] + 2);
    };
    const double under =
        along(roi[1], roi[3], features[level].size(3)) * along(roi[2], roi[4], features[level].size(2));
    covered += under;
  }
  return covered > 2 * cells * static_cast<double>(features[0].size(0));
}

// What sums are taken and returned in. The CPU kernels leave the rounding to half to torch.
at::ScalarType sum_type(const at::Tensor& tensor) {
  const bool half = tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
  return tensor.is_cpu() && half ? at::kFloat : tensor.scalar_type();
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, at::IntArrayRef output_size,
                     at::ArrayRef<double> scales, int64_t sampling_ratio, bool aligned, double finest_scale) {
  const char* op = "roi_align";
  TORCH_CHECK(!features.empty(), op, ": features is empty, expected one tensor per level");
  TORCH_CHECK(scales.size() == features.size(), op, ": there are ", scales.size(), " scales for ",
              features.size(), " levels of features");
  const Argument first{op, "features of the first level", features[0]};
  expect_shape(first, {-1, -1, -1, -1}, "[B, C, H, W]");
  expect_dtype(first, {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16},
               "float32, float64, float16 or bfloat16");
  for (const at::Tensor& feature : features) {
    const Argument level{op, "features", feature};
    expect_shape(level, {features[0].size(0), features[0].size(1), -1, -1},
                 "[B, C, H, W] with the same B and C on every level");
    expect_like(level, first);
    expect_cells(op, "features", feature.size(2), feature.size(3), 1);
  }
  expect_rois({op, "rois", rois}, first);
  expect_bins(op, "output_size", output_size);
  expect_pooling(op, scales, sampling_ratio, finest_scale);
  expect_elements(op, "the result", {rois.size(0), features[0].size(1), output_size[0], output_size[1]});

  const at::Device device = features[0].device();
  expect_pooling_fits(op, device, features.size(), output_size[0], output_size[1]);
  if (device.is_cpu()) check_images_on_cpu(rois, features[0].size(0));
  const c10::DeviceGuard guard(device);
  const bool channels_last = features[0].is_contiguous(kChannelsLast) && !features[0].is_contiguous();
  const auto wanted = channels_last ? kChannelsLast : at::MemoryFormat::Contiguous;
  const at::Tensor rows = rois.contiguous();
  const bool copied = device.is_cpu() && copies_pay(features, rows, scales, finest_scale);
  const auto format = copied ? kChannelsLast : wanted;
  std::vector<at::Tensor> maps;
  std::vector<const void*> pointers;
  std::vector<int64_t> sizes;
  for (const at::Tensor& feature : features) {
    maps.push_back(feature.contiguous(format));
    pointers.push_back(maps.back().const_data_ptr());
    sizes.insert(sizes.end(), {feature.size(2), feature.size(3)});
  }
  const int64_t channels = features[0].size(1);
  at::Tensor out = at::empty({rois.size(0), channels, output_size[0], output_size[1]},
                             features[0].options().dtype(sum_type(features[0])).memory_format(format));
  const FrcnnRoiAlign pooling{sizes.data(),
                              scales.data(),
                              static_cast<int64_t>(scales.size()),
                              features[0].size(0),
                              channels,
                              rois.size(0),
                              output_size[0],
                              output_size[1],
                              sampling_ratio,
                              aligned,
                              format == kChannelsLast,
                              finest_scale};
  FRCNN_RUN(roi_align, device, type_of(features[0]), &pooling, pointers.data(), rows.const_data_ptr(),
            out.mutable_data_ptr());
  return out.to(features[0].scalar_type()).contiguous(wanted);
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& rois,
                                           at::IntArrayRef sizes, int64_t batch, at::ArrayRef<double> scales,
                                           int64_t sampling_ratio, bool aligned, double finest_scale) {
  const char* op = "roi_align_backward";
  const Argument gradient{op, "grad", grad};
  expect_shape(gradient, {-1, -1, -1, -1}, "[K, C, h, w]");
  expect_dtype(gradient, {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16},
               "float32, float64, float16 or bfloat16");
  expect_rois({op, "rois", rois}, gradient);
  expect_shape(gradient, {rois.size(0), -1, -1, -1}, "[K, C, h, w] with one entry per RoI");
  expect_bins(op, "(h, w) of grad", grad.sizes().slice(2));
  expect_pooling(op, scales, sampling_ratio, finest_scale);
  expect_maps(op, sizes, scales.size(), batch);
  for (size_t level = 0; level < scales.size(); ++level) {
    expect_elements(op, "a gradient", {batch, grad.size(1), sizes[2 * level], sizes[2 * level + 1]});
  }

  const at::Device device = grad.device();
  expect_pooling_fits(op, device, scales.size(), grad.size(2), grad.size(3));
  expect_tiles_fit(op, device, sizes, batch, grad.size(1));
  if (device.is_cpu()) check_images_on_cpu(rois, batch);
  const c10::DeviceGuard guard(device);
  const at::Tensor source = grad.to(sum_type(grad)).contiguous(kChannelsLast), rows = rois.contiguous();
  std::vector<at::Tensor> grads;
  std::vector<void*> pointers;
  for (size_t l = 0; l < scales.size(); ++l) {
    grads.push_back(at::empty({batch, grad.size(1), sizes[2 * l], sizes[2 * l + 1]},
                              source.options().memory_format(kChannelsLast)));
    pointers.push_back(grads.back().mutable_data_ptr());
  }
  const FrcnnRoiAlign pooling{sizes.data(), scales.data(), static_cast<int64_t>(scales.size()),
                              batch,        grad.size(1),  rois.size(0),
                              grad.size(2), grad.size(3),  sampling_ratio,
                              aligned,      true,          finest_scale};
  const at::Tensor memory = workspace(FRCNN_WORKSPACE_OF(roi_align_backward, device, &pooling), grad);
  FRCNN_RUN(roi_align_backward, device, type_of(source), &pooling, source.const_data_ptr(),
            rows.const_data_ptr(), memory.mutable_data_ptr(), pointers.data());
  for (at::Tensor& map : grads) map = map.to(grad.scalar_type());
  return grads;
}

TORCH_LIBRARY_FRAGMENT(frcnn_ops, m) {
  // features: L of [B, C, H, W]; rois [K, 5] (image, x1, y1, x2, y2); scales: 1 / stride per level
  // -> [K, C, h, w]. With L > 1 the level is clamp(floor(log2(sqrt(w*h) / finest_scale + 1e-6)), 0, L-1).
  // The result has the memory format of the features (channels-last stays channels-last).
  define(m,
         "roi_align(Tensor[] features, Tensor rois, int[] output_size, float[] scales, int sampling_ratio, "
         "bool aligned, float finest_scale) -> Tensor",
         &roi_align);
  // sizes: H0, W0, H1, W1, ... -> L of [batch, C, H, W]; bitwise deterministic
  define(m,
         "roi_align_backward(Tensor grad, Tensor rois, int[] sizes, int batch, float[] scales, "
         "int sampling_ratio, bool aligned, float finest_scale) -> Tensor[]",
         &roi_align_backward);
}

}  // namespace
}  // namespace frcnn
