// Images resized as cv2 does (resize.h), each at the top left of its place in a batch: a thread makes a pixel
// of the result from four of its image, whose bytes L1 and L2 share among neighbors.
//
// Bound by the issue of instructions, a modeled 3.5 us for an image of 600x1000 to 800x1333; the bytes take a
// modeled 1.5 us at 3.35 TB/s (docs/performance.md). The weights are in float64, which takes longer where a
// GPU is slow at it. Nothing was measured on a GPU.
#include "../resize.h"
#include "launch.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256;

struct Source {
  const uint8_t* pixels;
  int height, width, new_height, new_width;
  double row_scale, column_scale;
  bool halved, copied;
};
struct Sources {
  Source of[kFrcnnImages];
};

// grid: (blocks of pixels of an image's place, images)
__global__ void __launch_bounds__(kThreads)
    resize_kernel(const __grid_constant__ Sources sources, unsigned width, unsigned pixels,
                  uint8_t* __restrict__ out) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= pixels) return;
  const Source& image = sources.of[blockIdx.y];
  const int y = static_cast<int>(i / width), x = static_cast<int>(i % width);
  uint8_t* const pixel = out + (int64_t{blockIdx.y} * pixels + i) * 3;
  if (y >= image.new_height || x >= image.new_width) {
    for (int c = 0; c < 3; ++c) pixel[c] = 0;
    return;
  }
  Taps row{2 * y, 2 * y + 1, 0, 0}, column{2 * x, 2 * x + 1, 0, 0};
  if (image.copied) {
    row.low = row.high = y;
    column.low = column.high = x;
  } else if (!image.halved) {
    row = taps_of(y, image.row_scale, image.height, false);
    column = taps_of(x, image.column_scale, image.width, true);
  }
  const uint8_t* const top = image.pixels + int64_t{row.low} * image.width * 3;
  const uint8_t* const bottom = image.pixels + int64_t{row.high} * image.width * 3;
  for (int c = 0; c < 3; ++c) {
    const int left = 3 * column.low + c, right = 3 * column.high + c;
    const int a = top[left], b = top[right], d = bottom[left], e = bottom[right];
    pixel[c] = image.halved   ? mean_of(a, b, d, e)
               : image.copied ? static_cast<uint8_t>(a)
                              : along_column(along_row(a, b, column), along_row(d, e, column), row);
  }
}

}  // namespace
}  // namespace frcnn

extern "C" int frcnn_cuda_resize_images(const FrcnnImage* images, int64_t batch, int64_t height,
                                        int64_t width, uint8_t* out, cudaStream_t stream) {
  using namespace frcnn;
  const int64_t pixels = height * width;
  if (pixels == 0) return cudaSuccess;
  if (pixels > INT32_MAX) return cudaErrorInvalidValue;
  constexpr int64_t most = kFrcnnImages;
  for (int64_t first = 0; first < batch; first += most) {
    const int64_t count = batch - first < most ? batch - first : most;
    Sources sources{};
    for (int64_t i = 0; i < count; ++i) {
      const FrcnnImage& image = images[first + i];
      if (image.height > kFrcnnLongestSide || image.width > kFrcnnLongestSide) return cudaErrorInvalidValue;
      sources.of[i] = {image.pixels,
                       static_cast<int>(image.height),
                       static_cast<int>(image.width),
                       static_cast<int>(image.new_height),
                       static_cast<int>(image.new_width),
                       scale_of(image.height, image.new_height),
                       scale_of(image.width, image.new_width),
                       is_halved(image),
                       image.height == image.new_height && image.width == image.new_width};
    }
    const dim3 blocks(static_cast<unsigned>(div_up<int64_t>(pixels, kThreads)), static_cast<unsigned>(count));
    const cudaError_t error =
        launch(resize_kernel, blocks, dim3(kThreads), 0, stream, sources, static_cast<unsigned>(width),
               static_cast<unsigned>(pixels), out + first * pixels * 3);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
