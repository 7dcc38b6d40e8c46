// Images resized as cv2 does (resize.h), each at the top left of its place in a batch. A row of the result is
// made of two rows of the image, each at the columns' taps, which all rows share.
#include <algorithm>
#include <vector>

#include "../resize.h"
#include "parallel.h"

namespace frcnn {
namespace {

void halved_row(const FrcnnImage& image, int64_t y, uint8_t* out) {
  const uint8_t* const top = image.pixels + 2 * y * image.width * 3;
  const uint8_t* const bottom = top + image.width * 3;
  for (int64_t x = 0; x < image.new_width; ++x) {
    for (int64_t c = 0; c < 3; ++c) {
      const int64_t left = 6 * x + c, right = left + 3;
      out[3 * x + c] = mean_of(top[left], top[right], bottom[left], bottom[right]);
    }
  }
}

void resized_row(const FrcnnImage& image, const std::vector<Taps>& columns, const Taps& row, uint8_t* out) {
  const uint8_t* const top = image.pixels + row.low * image.width * 3;
  const uint8_t* const bottom = image.pixels + row.high * image.width * 3;
  for (int64_t x = 0; x < image.new_width; ++x) {
    const Taps& column = columns[x];
    for (int c = 0; c < 3; ++c) {
      const int left = 3 * column.low + c, right = 3 * column.high + c;
      out[3 * x + c] = along_column(along_row(top[left], top[right], column),
                                    along_row(bottom[left], bottom[right], column), row);
    }
  }
}

void resize_row(const FrcnnImage& image, const std::vector<Taps>& columns, int64_t y, uint8_t* out) {
  if (image.height == image.new_height && image.width == image.new_width) {
    std::copy_n(image.pixels + y * image.width * 3, image.width * 3, out);
  } else if (is_halved(image)) {
    halved_row(image, y, out);
  } else {
    const double scale = scale_of(image.height, image.new_height);
    const int size = static_cast<int>(image.height);
    resized_row(image, columns, taps_of(static_cast<int>(y), scale, size, false), out);
  }
}

}  // namespace
}  // namespace frcnn

void frcnn_cpu_resize_images(const FrcnnImage* images, int64_t batch, int64_t height, int64_t width,
                             uint8_t* out) {
  using namespace frcnn;
  for (int64_t i = 0; i < batch; ++i) {
    const FrcnnImage& image = images[i];
    std::vector<Taps> columns(image.new_height > 0 ? image.new_width : 0);
    for (size_t x = 0; x < columns.size(); ++x) {
      columns[x] = taps_of(static_cast<int>(x), scale_of(image.width, image.new_width),
                           static_cast<int>(image.width), true);
    }
    parallel_for(height, 16, [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        uint8_t* const row = out + (i * height + y) * width * 3;
        int64_t made = 0;
        if (y < image.new_height && image.new_width > 0) {
          resize_row(image, columns, y, row);
          made = image.new_width;
        }
        std::fill(row + made * 3, row + width * 3, uint8_t{0});
      }
    });
  }
}
