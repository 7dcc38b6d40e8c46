// Pixels to the network's input: a thread per pixel reads three bytes and writes three numbers.
//
// Bound by the issue of instructions, a modeled 5.3 us for one image of 800x1344 in bfloat16: three bytes are
// three loads. The bytes, 3 read and 6 (12 in float32) written per pixel, take a modeled 2.9 us at 3.35 TB/s
// (docs/performance.md). Nothing was measured on a GPU.
#include "dtypes.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256;

struct Normalization {
  float mean[kFrcnnMostImageChannels], std[kFrcnnMostImageChannels];
  int channels;
  bool reverse;
};

// kChannels: three, or 0 for any number, which the thread reads and writes one by one.
template <typename T, int kChannels>
__global__ void __launch_bounds__(kThreads)
    normalize_kernel(const uint8_t* __restrict__ images, const float* __restrict__ sizes,
                     const __grid_constant__ Normalization how, unsigned height, unsigned width,
                     unsigned pixels, T* __restrict__ out) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= pixels) return;
  const unsigned row = i / width, x = i - row * width, image = row / height, y = row - image * height;
  const bool inside =
      static_cast<float>(y) < sizes[2 * image] && static_cast<float>(x) < sizes[2 * image + 1];
  const int channels = kChannels > 0 ? kChannels : how.channels;
  const uint8_t* const own = images + int64_t{i} * channels;
#pragma unroll
  for (int c = 0; c < channels; ++c) {
    const float value = static_cast<float>(own[kChannels == 3 && how.reverse ? 2 - c : c]);
    out[int64_t{i} * channels + c] = narrow<T>(inside ? (value - how.mean[c]) / how.std[c] : 0.0f);
  }
}

}  // namespace
}  // namespace frcnn

extern "C" int frcnn_cuda_normalize_images(int64_t type, const uint8_t* images, const float* sizes,
                                           const double* mean, const double* std, bool reverse, int64_t batch,
                                           int64_t height, int64_t width, int64_t channels, void* out,
                                           cudaStream_t stream) {
  using namespace frcnn;
  const int64_t pixels = batch * height * width;
  if (pixels == 0) return cudaSuccess;
  if (pixels > INT32_MAX || channels > kFrcnnMostImageChannels) return cudaErrorInvalidValue;
  Normalization how{{}, {}, static_cast<int>(channels), reverse};
  for (int c = 0; c < how.channels; ++c) {
    how.mean[c] = static_cast<float>(mean[c]);
    how.std[c] = static_cast<float>(std[c]);
  }
  return for_half_or_float(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return launch(channels == 3 ? normalize_kernel<T, 3> : normalize_kernel<T, 0>,
                  dim3(static_cast<unsigned>(div_up<int64_t>(pixels, kThreads))), dim3(kThreads), 0, stream,
                  images, sizes, how, static_cast<unsigned>(height), static_cast<unsigned>(width),
                  static_cast<unsigned>(pixels), static_cast<T*>(out));
  });
}
