// winograd_vectors.h without torch, for cross compilers and emulators too: each width on its own, written
// with std::fma so that any machine runs it, and the instruction sets that this one has. All have the same
// bits, and those are near a direct sum in float64.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/winograd_conv.cpp"

namespace frcnn {
int64_t thread_count() { return 1; }
void parallel_for(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  body(0, count);
}
}  // namespace frcnn

namespace {

#pragma GCC diagnostic ignored \
    "-Wpsabi"  // vectors wider than this machine's are passed only to what is inlined
template <typename V>
FRCNN_INLINE V fused(V a, V b, V c) {
  for (size_t i = 0; i < sizeof(V) / sizeof(float); ++i) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
}

}  // namespace

#define FRCNN_SET lanes4
#define FRCNN_TARGET
#define FRCNN_LANES 4
#define FRCNN_ROWS 6
#define FRCNN_FILTERS 16
#define FRCNN_FMA fused<Vector>
#include "cpu/winograd_vectors.h"

#define FRCNN_SET lanes8
#define FRCNN_TARGET
#define FRCNN_LANES 8
#define FRCNN_ROWS 6
#define FRCNN_FILTERS 16
#define FRCNN_FMA fused<Vector>
#include "cpu/winograd_vectors.h"

#define FRCNN_SET lanes16
#define FRCNN_TARGET
#define FRCNN_LANES 16
#define FRCNN_ROWS 12
#define FRCNN_FILTERS 32
#define FRCNN_FMA fused<Vector>
#include "cpu/winograd_vectors.h"

namespace {

using namespace frcnn::winograd;

int failures = 0;

void expect(bool condition, const char* what, int64_t detail) {
  if (condition) return;
  std::printf("failed: %s (%d)\n", what, static_cast<int>(detail));
  ++failures;
}

std::vector<float> random_floats(std::mt19937& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// [K, C, 3, 3] -> [K / 16, 36, C, 16], as frcnn_ops.winograd_weight does it
std::vector<float> transformed(const std::vector<float>& filters, int64_t k_count, int64_t c_count) {
  const double points[5] = {0.0, 0.75, -0.75, 1.5, -1.5};
  double g[6][3] = {};
  for (int p = 0; p < 5; ++p) {
    double distance = 1;
    for (int q = 0; q < 5; ++q) distance *= q == p ? 1 : points[p] - points[q];
    for (int i = 0; i < 3; ++i) g[p][i] = std::pow(points[p], i) / distance;
  }
  g[5][2] = 1;
  std::vector<float> out(k_count * 36 * c_count);
  for (int64_t k = 0; k < k_count; ++k) {
    for (int64_t c = 0; c < c_count; ++c) {
      for (int64_t point = 0; point < 36; ++point) {
        double sum = 0;
        for (int i = 0; i < 3; ++i) {
          for (int j = 0; j < 3; ++j) {
            sum += g[point / 6][i] * g[point % 6][j] * filters[((k * c_count + c) * 3 + i) * 3 + j];
          }
        }
        out[((k / 16 * 36 + point) * c_count + c) * 16 + k % 16] = static_cast<float>(sum);
      }
    }
  }
  return out;
}

struct Layer {
  int64_t batch, height, width, channels, filters;
  bool with_bias, with_add, relu;
};

void check(const Layer& layer, std::mt19937& random) {
  const auto [batch, height, width, channels, filters, with_bias, with_add, relu] = layer;
  const auto x = random_floats(random, batch * height * width * channels);
  auto weight = random_floats(random, filters * channels * 9);
  for (float& value : weight) value /= 3 * std::sqrt(static_cast<float>(channels));
  const auto bias = random_floats(random, filters),
             add = random_floats(random, batch * height * width * filters);
  const auto packed = transformed(weight, filters, channels);

  std::vector<double> exact(add.size());
  double most = 1;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t row = 0; row < height; ++row) {
      for (int64_t column = 0; column < width; ++column) {
        for (int64_t k = 0; k < filters; ++k) {
          const int64_t at = ((b * height + row) * width + column) * filters + k;
          double sum = (with_bias ? bias[k] : 0) + (with_add ? add[at] : 0);
          for (int64_t i = 0; i < 9; ++i) {
            const int64_t r = row + i / 3 - 1, s = column + i % 3 - 1;
            if (r < 0 || r >= height || s < 0 || s >= width) continue;
            const float* cell = x.data() + ((b * height + r) * width + s) * channels;
            for (int64_t c = 0; c < channels; ++c)
              sum += double{cell[c]} * weight[(k * channels + c) * 9 + i];
          }
          exact[at] = relu ? std::max(sum, 0.0) : sum;
          most = std::max(most, std::abs(exact[at]));
        }
      }
    }
  }

  const Geometry g{height, width, channels, filters, (height + 3) / 4, (width + 3) / 4};
  const int64_t tiles = batch * g.tiles_y * g.tiles_x, block = (tiles + 11) / 12 * 12;
  std::vector<float> scratch(scratch_floats(block, g)), first;
  const Epilogue epilogue{with_bias ? bias.data() : nullptr, with_add ? add.data() : nullptr, relu};
  const auto compare = [&](const std::vector<float>& found, int64_t lanes) {
    if (first.empty()) first = found;
    expect(std::memcmp(first.data(), found.data(), found.size() * sizeof(float)) == 0, "other bits", lanes);
    for (size_t i = 0; i < found.size(); ++i) {
      expect(std::abs(found[i] - exact[i]) < 8e-6 * most, "value", lanes);
    }
  };
  for (const int64_t lanes : {4, 8, 16}) {
    std::vector<float> found(add.size(), -7.0f);
    const Block all{x.data(), packed.data(), epilogue, g, 0, tiles, block, scratch.data(), found.data()};
    (lanes == 4 ? lanes4::convolve : lanes == 8 ? lanes8::convolve : lanes16::convolve)(all);
    compare(found, lanes);
  }
  for (int64_t lanes = frcnn_cpu_winograd_lanes(64); lanes; lanes = frcnn_cpu_winograd_lanes(lanes - 1)) {
    std::vector<float> found(add.size(), -7.0f);
    frcnn_cpu_winograd_conv(lanes, x.data(), packed.data(), epilogue.bias, epilogue.add, relu, batch, height,
                            width, channels, filters, found.data());
    compare(found, -lanes);
  }
}

// The gradient of the weight, against sums in float64.
void check_gradient(int64_t batch, const Geometry& g, std::mt19937& random) {
  const auto x = random_floats(random, batch * g.height * g.width * g.channels);
  const auto grad = random_floats(random, batch * g.height * g.width * g.filters);
  std::vector<double> exact(9 * g.channels * g.filters);
  double most = 1;
  for (int64_t at = 0; at < static_cast<int64_t>(exact.size()); ++at) {
    const int64_t k = at % g.filters, c = at / g.filters % g.channels, tap = at / g.filters / g.channels;
    for (int64_t cell = 0; cell < batch * g.height * g.width; ++cell) {
      const int64_t row = cell / g.width % g.height + tap / 3 - 1, column = cell % g.width + tap % 3 - 1;
      if (row < 0 || row >= g.height || column < 0 || column >= g.width) continue;
      const int64_t from = (cell / g.width / g.height * g.height + row) * g.width + column;
      exact[at] += double{x[from * g.channels + c]} * grad[cell * g.filters + k];
    }
    most = std::max(most, std::abs(exact[at]));
  }
  std::vector<float> first;
  const auto compare = [&](const std::vector<float>& found, int64_t lanes) {
    if (first.empty()) first = found;
    expect(std::memcmp(first.data(), found.data(), found.size() * sizeof(float)) == 0,
           "other bits of gradient", lanes);
    for (size_t i = 0; i < found.size(); ++i) {
      expect(std::abs(found[i] - exact[i]) < 8e-6 * most, "gradient", lanes);
    }
  };
  for (const int64_t lanes : {4, 8, 16}) {
    std::vector<float> found(exact.size(), -7.0f);
    weight_gradient(lanes == 4   ? FRCNN_OF(lanes4)
                    : lanes == 8 ? FRCNN_OF(lanes8)
                                 : FRCNN_OF(lanes16),
                    x.data(), grad.data(), batch, g, found.data());
    compare(found, lanes);
  }
  for (int64_t lanes = frcnn_cpu_winograd_lanes(64); lanes; lanes = frcnn_cpu_winograd_lanes(lanes - 1)) {
    std::vector<float> found(exact.size(), -7.0f);
    frcnn_cpu_winograd_weight_gradient(lanes, x.data(), grad.data(), batch, g.height, g.width, g.channels,
                                       g.filters, found.data());
    compare(found, -lanes);
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  check({1, 1, 1, 16, 32, false, false, false}, random);
  check({2, 9, 14, 48, 64, true, false, true}, random);
  check({1, 33, 2, 16, 96, true, true, true}, random);
  check({3, 20, 23, 32, 32, false, true, false}, random);
  check_gradient(1, {1, 1, 16, 32, 1, 1}, random);
  check_gradient(2, {9, 14, 48, 64, 3, 4}, random);
  check_gradient(3, {33, 40, 16, 32, 9, 10}, random);  // several passes over the sums
  std::printf("widest vectors here: %d floats\n", static_cast<int>(frcnn_cpu_winograd_lanes(64)));
  std::printf(failures ? "%d failures\n" : "all well\n", failures);
  return failures != 0;
}
