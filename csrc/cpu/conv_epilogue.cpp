// What follows a convolution: its bias, the sum with another map and the ReLU, in one pass, rounded once.
#include <vector>

#include "../nearest.h"
#include "parallel.h"
#include "types.h"

namespace frcnn {
namespace {

template <typename T>
void finish_cell(const T* x, const float* bias, const T* add, bool relu, int64_t channels, T* out) {
  for (int64_t k = 0; k < channels; ++k) {
    float value = widen(x[k]) + bias[k];
    if (add != nullptr) value += widen(add[k]);
    out[k] = narrow<T>(relu && value < 0.0f ? 0.0f : value);
  }
}

template <typename T>
void finish_rows(const FrcnnEpilogue& e, const std::vector<float>& bias, int64_t begin, int64_t end, T* out) {
  const T *const x = static_cast<const T*>(e.x), *const add = static_cast<const T*>(e.add);
  const float row_scale = nearest_scale(e.add_height, e.height), scale = nearest_scale(e.add_width, e.width);
  const int rows = static_cast<int>(e.add_height), columns = static_cast<int>(e.add_width);
  for (int64_t row = begin; row < end; ++row) {
    const T* added = nullptr;
    if (add != nullptr) {
      const int64_t from = row / e.height * rows + nearest(static_cast<int>(row % e.height), row_scale, rows);
      added = add + from * columns * e.channels;
    }
    for (int64_t column = 0; column < e.width; ++column) {
      const int64_t cell = (row * e.width + column) * e.channels;
      const T* own = added;
      if (own != nullptr) own += nearest(static_cast<int>(column), scale, columns) * e.channels;
      finish_cell(x + cell, bias.data(), own, e.relu, e.channels, out + cell);
    }
  }
}

}  // namespace
}  // namespace frcnn

void frcnn_cpu_conv_epilogue(int64_t type, const FrcnnEpilogue* epilogue, void* out) {
  using namespace frcnn;
  if (epilogue->width * epilogue->channels == 0) return;
  for_half_or_float(type, [&](auto number) {
    using T = decltype(number);
    std::vector<float> bias(epilogue->channels);
    for (size_t k = 0; k < bias.size(); ++k) bias[k] = widen(static_cast<const T*>(epilogue->bias)[k]);
    parallel_for(epilogue->batch * epilogue->height, 4, [&](int64_t begin, int64_t end) {
      finish_rows(*epilogue, bias, begin, end, static_cast<T*>(out));
    });
  });
}
