#include "binding.h"

namespace frcnn {
namespace {

constexpr auto kChannelsLast = MemoryFormat::ChannelsLast;

// RoIs are never rounded to half: float32 goes with half features, float64 with float64 features.
void expect_rois(const Argument& rois, const Argument& features) {
  expect_shape(rois, {-1, 5}, "[K, 5]: image index, x1, y1, x2, y2");
  const bool wide = features.tensor.scalar_type() == ScalarType::Double;
  expect_dtype(rois, {wide ? ScalarType::Double : ScalarType::Float},
               wide ? "float64, as the features" : "float32, whatever the features are");
  expect_same_device(rois, features);
}

void expect_pooling_fits(const char* op, Device device, int64_t levels, int64_t height, int64_t width) {
  expect_at_most(op, "levels", device, levels, kFrcnnMostLevels);
  FRCNN_CHECK(!device.is_cuda() || height + width <= kFrcnnMostBins, op, ": output_size (", height, ", ",
              width, ") is larger than the CUDA kernel takes (height + width at most ", int{kFrcnnMostBins},
              ")");
}

// The gradient's kernel has a block for each tile of each map.
void expect_tiles_fit(const char* op, Device device, Ints sizes, int64_t batch, int64_t channels) {
  expect_at_most(op, "channels of grad", device, channels, kFrcnnMostChannels);
  int64_t tiles = 0;
  for (size_t i = 0; i < sizes.size(); i += 2)
    tiles +=
        product({(sizes[i] + kFrcnnTile - 1) / kFrcnnTile, (sizes[i + 1] + kFrcnnTile - 1) / kFrcnnTile});
  expect_at_most(op, "tiles of 8 x 8 cells in the maps of batch images", device, product({tiles, batch}),
                 kMostAlongOne);
}

// Of the values, which a GPU would have to be waited for to know: there, such an RoI pools to zero.
void check_images_on_cpu(const Tensor& rois, int64_t batch) {
  const Tensor rows = contiguous(converted(rois, ScalarType::Double));
  for (int64_t k = 0; k < rows.size(0); ++k) {
    const double image = rows.const_data_ptr<double>()[5 * k];
    FRCNN_CHECK(image >= 0 && image < static_cast<double>(batch), "roi_align: rois[", k,
                "] belongs to image ", image, ", but the features are a batch of ", batch);
  }
}

// What the gradient is summed and returned in. The CPU kernel leaves the rounding to half to torch.
ScalarType sum_type(const Tensor& tensor) {
  const bool half = tensor.scalar_type() == ScalarType::Half || tensor.scalar_type() == ScalarType::BFloat16;
  return tensor.is_cpu() && half ? ScalarType::Float : tensor.scalar_type();
}

Tensor roi_align(const Tensors& features, const Tensor& rois, Ints output_size, Floats scales,
                 int64_t sampling_ratio, bool aligned, double finest_scale) {
  const char* op = "roi_align";
  FRCNN_CHECK(!features.empty(), op, ": features is empty, expected one tensor per level");
  FRCNN_CHECK(scales.size() == features.size(), op, ": there are ", scales.size(), " scales for ",
              features.size(), " levels of features");
  const Argument first{op, "features of the first level", features[0]};
  expect_shape(first, {-1, -1, -1, -1}, "[B, C, H, W]");
  expect_dtype(first, {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16},
               "float32, float64, float16 or bfloat16");
  for (const Tensor& feature : features) {
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

  const Device device = features[0].device();
  expect_pooling_fits(op, device, features.size(), output_size[0], output_size[1]);
  if (device.is_cpu()) check_images_on_cpu(rois, features[0].size(0));
  const OnDevice guard(device);
  const bool channels_last = is_channels_last(features[0]) && !features[0].is_contiguous();
  for (const Tensor& feature : features) {
    expect_at_most(op, "bytes in a row of channels-last features", device,
                   channels_last ? product({feature.size(3), feature.size(1),
                                            static_cast<int64_t>(feature.element_size())})
                                 : 0,
                   UINT32_MAX, "give it narrower maps");
  }
  const auto wanted = channels_last ? kChannelsLast : MemoryFormat::Contiguous;
  Tensors maps;
  std::vector<const void*> pointers;
  std::vector<int64_t> sizes;
  for (const Tensor& feature : features) {
    maps.push_back(contiguous(feature, wanted));
    pointers.push_back(maps.back().const_data_ptr());
    sizes.insert(sizes.end(), {feature.size(2), feature.size(3)});
  }
  const Tensor rows = contiguous(rois);
  const int64_t channels = features[0].size(1);
  const Tensor out = empty({rois.size(0), channels, output_size[0], output_size[1]}, features[0], wanted);
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
                              channels_last,
                              finest_scale};
  FRCNN_RUN(roi_align, device, type_of(features[0]), &pooling, pointers.data(), rows.const_data_ptr(),
            out.mutable_data_ptr());
  return out;
}

Tensors roi_align_backward(const Tensor& grad, const Tensor& rois, Ints sizes, int64_t batch, Floats scales,
                           int64_t sampling_ratio, bool aligned, double finest_scale) {
  const char* op = "roi_align_backward";
  const Argument gradient{op, "grad", grad};
  expect_shape(gradient, {-1, -1, -1, -1}, "[K, C, h, w]");
  expect_dtype(gradient, {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16},
               "float32, float64, float16 or bfloat16");
  expect_rois({op, "rois", rois}, gradient);
  expect_shape(gradient, {rois.size(0), -1, -1, -1}, "[K, C, h, w] with one entry per RoI");
  expect_bins(op, "(h, w) of grad", grad.sizes().slice(2));
  expect_pooling(op, scales, sampling_ratio, finest_scale);
  expect_maps(op, sizes, scales.size(), batch);
  for (size_t level = 0; level < scales.size(); ++level) {
    expect_elements(op, "a gradient", {batch, grad.size(1), sizes[2 * level], sizes[2 * level + 1]});
  }

  const Device device = grad.device();
  expect_pooling_fits(op, device, scales.size(), grad.size(2), grad.size(3));
  expect_tiles_fit(op, device, sizes, batch, grad.size(1));
  if (device.is_cpu()) check_images_on_cpu(rois, batch);
  const OnDevice guard(device);
  const Tensor source = contiguous(converted(grad, sum_type(grad)), kChannelsLast), rows = contiguous(rois);
  Tensors grads;
  std::vector<void*> pointers;
  for (size_t l = 0; l < scales.size(); ++l) {
    grads.push_back(empty({batch, grad.size(1), sizes[2 * l], sizes[2 * l + 1]}, source, kChannelsLast));
    pointers.push_back(grads.back().mutable_data_ptr());
  }
  const FrcnnRoiAlign pooling{sizes.data(), scales.data(), static_cast<int64_t>(scales.size()),
                              batch,        grad.size(1),  rois.size(0),
                              grad.size(2), grad.size(3),  sampling_ratio,
                              aligned,      true,          finest_scale};
  const Tensor memory =
      workspace(FRCNN_WORKSPACE_OF(roi_align_backward, device, type_of(source), &pooling), grad);
  FRCNN_RUN(roi_align_backward, device, type_of(source), &pooling, source.const_data_ptr(),
            rows.const_data_ptr(), memory.mutable_data_ptr(), pointers.data());
  for (Tensor& map : grads) map = converted(map, grad.scalar_type());
  return grads;
}

}  // namespace

// features: L of [B, C, H, W]; rois [K, 5] (image, x1, y1, x2, y2); scales: 1 / stride per level
// -> [K, C, h, w]. With L > 1 the level is clamp(floor(log2(sqrt(w*h) / finest_scale + 1e-6)), 0, L-1).
// The result has the memory format of the features (channels-last stays channels-last).
FRCNN_OPERATOR(
    roi_align,
    "roi_align(Tensor[] features, Tensor rois, int[] output_size, float[] scales, int sampling_ratio, "
    "bool aligned, float finest_scale) -> Tensor")
// sizes: H0, W0, H1, W1, ... -> L of [batch, C, H, W]; bitwise deterministic
FRCNN_OPERATOR(roi_align_backward,
               "roi_align_backward(Tensor grad, Tensor rois, int[] sizes, int batch, float[] scales, "
               "int sampling_ratio, bool aligned, float finest_scale) -> Tensor[]")

}  // namespace frcnn
