// The gradient of a ReLU and of the bias before it, in one pass. Cells are shared in as many parts on every
// machine, whose sums are added in their order: the bits do not depend on the number of threads.
#include <algorithm>

#include "parallel.h"
#include "types.h"

namespace frcnn {
namespace {

constexpr int64_t kMostParts = 64, kLeastCells = 64;  // of a part

int64_t parts_of(int64_t cells) { return std::clamp<int64_t>(cells / kLeastCells, 1, kMostParts); }

template <typename T>
void mask_cell(const T* grad, const T* out, int64_t channels, T* masked, Compute<T>* sums) {
  for (int64_t k = 0; k < channels; ++k) {
    const T own = widen(out[k]) <= 0 ? T{} : grad[k];
    masked[k] = own;
    sums[k] += widen(own);
  }
}

template <typename T>
void mask(const T* grad, const T* out, int64_t cells, int64_t channels, Compute<T>* partial, T* masked,
          T* by_bias) {
  const int64_t parts = parts_of(cells);
  std::fill_n(partial, parts * channels, Compute<T>{0});
  parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t i = cells * part / parts; i < cells * (part + 1) / parts; ++i) {
        const int64_t cell = i * channels;
        mask_cell(grad + cell, out + cell, channels, masked + cell, partial + part * channels);
      }
    }
  });
  for (int64_t k = 0; k < channels; ++k) {
    Compute<T> sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * channels + k];
    by_bias[k] = narrow<T>(sum);
  }
}

}  // namespace
}  // namespace frcnn

int64_t frcnn_cpu_relu_bias_gradient_workspace(int64_t type, int64_t cells, int64_t channels) {
  return frcnn::parts_of(cells) * channels * (type == kFrcnnDouble ? 8 : 4);
}

void frcnn_cpu_relu_bias_gradient(int64_t type, const void* grad, const void* out, int64_t cells,
                                  int64_t channels, void* workspace, void* masked, void* by_bias) {
  using namespace frcnn;
  for_any_type(type, [&](auto number) {
    using T = decltype(number);
    mask(static_cast<const T*>(grad), static_cast<const T*>(out), cells, channels,
         static_cast<Compute<T>*>(workspace), static_cast<T*>(masked), static_cast<T*>(by_bias));
  });
}
