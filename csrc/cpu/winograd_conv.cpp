// 3x3 convolution by Winograd's minimal filtering F(4x4, 3x3), float32, channels-last, for AVX-512.
//
// A tile of 4x4 outputs costs 36 products per channel pair instead of 144 (Lavin and Gray, "Fast Algorithms
// for Convolutional Neural Networks", 2015): Y = A' [(G g G') . (B' d B)] A, where the middle product, summed
// over channels, is 36 matrix products. The interpolation points are 0, +-3/4, +-3/2 and infinity: their
// powers are exact in binary and of similar size, which costs a third of the rounding error of the usual
// 0, +-1, +-2 (about 3e-6 of the largest output, where a direct sum has 2e-7).
//
// A block of tiles stays in the L2 cache from the first transform to the last, so memory sees the input once,
// the output once and, per block, the weights.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "../kernel_api.h"
#include "parallel.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FRCNN_WINOGRAD 1
#endif

namespace frcnn {
namespace {

constexpr int64_t kPoints = kFrcnnWinogradPoints;  // elements of a 6x6 input tile
constexpr int64_t kLanes = kFrcnnWinogradLanes;    // floats in a vector
constexpr int64_t kPanel = kFrcnnWinogradPanel;    // filters that one product computes
constexpr int64_t kRows = 12;  // tiles that one product computes: 12 x 2 accumulators fill 24 of 32 registers
constexpr int64_t kBlock = 48;  // tiles that share a pass over the weights, at most

#ifdef FRCNN_WINOGRAD

#define FRCNN_AVX512 __attribute__((target("avx512f")))

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in gcc's own intrinsics
#endif

struct Geometry {
  int64_t height, width, channels, filters;
  int64_t tiles_y, tiles_x;
};

struct Tile {
  int64_t image, y, x;  // y, x: of its first output
};

// What happens to a sum of products: + bias[k], + add at the same place, then ReLU.
struct Epilogue {
  const float* bias;  // [K] or null
  const float* add;   // as the output, or null
  bool relu;
};

Tile tile_at(const Geometry& g, int64_t index) {
  const int64_t row = index / g.tiles_x;
  return {row / g.tiles_y, row % g.tiles_y * 4, index % g.tiles_x * 4};
}

constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

// B' d for one column d of six; the result's elements are `step` apart.
FRCNN_AVX512 inline void transform_input_line(const __m512* d, __m512* out, int step) {
  const __m512 a2 = _mm512_set1_ps(kA2), b2 = _mm512_set1_ps(kB2);
  const __m512 sum = _mm512_set1_ps(kA2 + kB2), product = _mm512_set1_ps(kA2 * kB2);
  out[0] = _mm512_fmadd_ps(product, d[0], _mm512_fnmadd_ps(sum, d[2], d[4]));
  out[5 * step] = _mm512_fmadd_ps(product, d[1], _mm512_fnmadd_ps(sum, d[3], d[5]));
  const __m512 even_a = _mm512_fnmadd_ps(b2, d[2], d[4]);
  const __m512 odd_a = _mm512_mul_ps(_mm512_set1_ps(kA), _mm512_fnmadd_ps(b2, d[1], d[3]));
  out[1 * step] = _mm512_add_ps(even_a, odd_a);
  out[2 * step] = _mm512_sub_ps(even_a, odd_a);
  const __m512 even_b = _mm512_fnmadd_ps(a2, d[2], d[4]);
  const __m512 odd_b = _mm512_mul_ps(_mm512_set1_ps(kB), _mm512_fnmadd_ps(a2, d[1], d[3]));
  out[3 * step] = _mm512_add_ps(even_b, odd_b);
  out[4 * step] = _mm512_sub_ps(even_b, odd_b);
}

// A' m for one column m of six.
FRCNN_AVX512 inline void transform_output_line(const __m512* m, __m512* out, int step) {
  const __m512 sum_a = _mm512_add_ps(m[1], m[2]), difference_a = _mm512_sub_ps(m[1], m[2]);
  const __m512 sum_b = _mm512_add_ps(m[3], m[4]), difference_b = _mm512_sub_ps(m[3], m[4]);
  const __m512 cubes = _mm512_fmadd_ps(_mm512_set1_ps(kB2 * kB), difference_b, m[5]);
  out[0] = _mm512_add_ps(m[0], _mm512_add_ps(sum_a, sum_b));
  out[1 * step] =
      _mm512_fmadd_ps(_mm512_set1_ps(kA), difference_a, _mm512_mul_ps(_mm512_set1_ps(kB), difference_b));
  out[2 * step] = _mm512_fmadd_ps(_mm512_set1_ps(kA2), sum_a, _mm512_mul_ps(_mm512_set1_ps(kB2), sum_b));
  out[3 * step] = _mm512_fmadd_ps(_mm512_set1_ps(kA2 * kA), difference_a, cubes);
}

// One tile of the input, [6, 6, C] -> v: [36][C], points `stride` apart; zero beyond the image.
FRCNN_AVX512 void transform_input(const float* x, const Geometry& g, Tile tile, float* v, int64_t stride) {
  const float* cells[6][6];
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 6; ++j) {
      const int64_t row = tile.y - 1 + i, column = tile.x - 1 + j;
      const bool inside = row >= 0 && row < g.height && column >= 0 && column < g.width;
      cells[i][j] = inside ? x + ((tile.image * g.height + row) * g.width + column) * g.channels : nullptr;
    }
  }
  for (int64_t c = 0; c < g.channels; c += kLanes) {
    __m512 half[6][6];
    for (int j = 0; j < 6; ++j) {
      __m512 d[6];
      for (int i = 0; i < 6; ++i) {
        d[i] = cells[i][j] ? _mm512_loadu_ps(cells[i][j] + c) : _mm512_setzero_ps();
      }
      transform_input_line(d, &half[0][j], 6);
    }
    for (int i = 0; i < 6; ++i) {
      __m512 line[6];
      transform_input_line(half[i], line, 1);
      for (int j = 0; j < 6; ++j) _mm512_storeu_ps(v + (i * 6 + j) * stride + c, line[j]);
    }
  }
}

// a: kRows rows of `depth`; b: [depth, kPanel] -> out: [kRows, kPanel]. Meanwhile fetches `depth` cache lines
// from `next` on into L2: the weights of a pass do not fit there.
FRCNN_AVX512 void multiply(const float* a, const float* b, int64_t depth, const float* next, float* out) {
  __m512 sums[kRows][2];
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) sums[row][0] = sums[row][1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k) {
    const __m512 low = _mm512_loadu_ps(b + k * kPanel), high = _mm512_loadu_ps(b + k * kPanel + kLanes);
    _mm_prefetch(reinterpret_cast<const char*>(next + k * kLanes), _MM_HINT_T1);
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
      const __m512 value = _mm512_set1_ps(a[row * depth + k]);
      sums[row][0] = _mm512_fmadd_ps(value, low, sums[row][0]);
      sums[row][1] = _mm512_fmadd_ps(value, high, sums[row][1]);
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
    _mm512_storeu_ps(out + row * kPanel, sums[row][0]);
    _mm512_storeu_ps(out + row * kPanel + kLanes, sums[row][1]);
  }
}

// m: [36][kPanel], points `stride` apart -> filters k to k + kPanel of one tile of the output.
FRCNN_AVX512 void transform_output(const float* m, int64_t stride, const Geometry& g, Tile tile,
                                   const Epilogue& epilogue, int64_t k, float* out) {
  const int64_t rows = std::min<int64_t>(4, g.height - tile.y);
  const int64_t columns = std::min<int64_t>(4, g.width - tile.x);
  const __m512 least = _mm512_set1_ps(epilogue.relu ? 0.0f : -__builtin_inff());
  for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
    __m512 half[4][6];
    for (int j = 0; j < 6; ++j) {
      __m512 column[6];
      for (int i = 0; i < 6; ++i) column[i] = _mm512_loadu_ps(m + (i * 6 + j) * stride + lane);
      transform_output_line(column, &half[0][j], 6);
    }
    const __m512 shift = epilogue.bias ? _mm512_loadu_ps(epilogue.bias + k + lane) : _mm512_setzero_ps();
    for (int64_t i = 0; i < rows; ++i) {
      __m512 line[4];
      transform_output_line(half[i], line, 1);
      const int64_t first = ((tile.image * g.height + tile.y + i) * g.width + tile.x) * g.filters + k + lane;
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t cell = first + j * g.filters;
        __m512 value = _mm512_add_ps(line[j], shift);
        if (epilogue.add) value = _mm512_add_ps(value, _mm512_loadu_ps(epilogue.add + cell));
        _mm512_storeu_ps(out + cell, _mm512_max_ps(least, value));  // in this order a NaN gets through
      }
    }
  }
}

// Points are an odd number of cache lines apart, so that the 36 streams do not share cache sets.
int64_t input_stride(int64_t block, int64_t channels) { return block * channels + kLanes; }
int64_t output_stride(int64_t block) { return block * kPanel + kLanes; }

void convolve_block(const float* x, const float* weight, const Epilogue& epilogue, const Geometry& g,
                    int64_t first, int64_t tiles, int64_t block, float* scratch, float* out) {
  const int64_t v_stride = input_stride(block, g.channels), m_stride = output_stride(block);
  float *v = scratch, *m = scratch + kPoints * v_stride;
  for (int64_t t = 0; t < tiles; ++t) {
    transform_input(x, g, tile_at(g, first + t), v + t * g.channels, v_stride);
  }
  const int64_t padded = (tiles + kRows - 1) / kRows * kRows;
  for (int64_t point = 0; point < kPoints; ++point) {
    std::fill(v + point * v_stride + tiles * g.channels, v + point * v_stride + padded * g.channels, 0.0f);
  }
  for (int64_t k = 0; k < g.filters; k += kPanel) {
    for (int64_t point = 0; point < kPoints; ++point) {
      const float* panel = weight + (k / kPanel * kPoints + point) * g.channels * kPanel;
      for (int64_t t = 0; t < padded; t += kRows) {
        // half of the next point's panel with each product
        const float* next = panel + (kPanel + t / kRows % 2 * kLanes) * g.channels;
        multiply(v + point * v_stride + t * g.channels, panel, g.channels, next,
                 m + point * m_stride + t * kPanel);
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      transform_output(m + t * kPanel, m_stride, g, tile_at(g, first + t), epilogue, k, out);
    }
  }
}

struct AlignedDelete {
  void operator()(float* values) const { ::operator delete(values, std::align_val_t{64}); }
};
std::unique_ptr<float, AlignedDelete> aligned_floats(int64_t count) {
  void* values = ::operator new(static_cast<size_t>(count) * sizeof(float), std::align_val_t{64});
  return std::unique_ptr<float, AlignedDelete>(static_cast<float*>(values));
}

#endif  // FRCNN_WINOGRAD

}  // namespace
}  // namespace frcnn

bool frcnn_cpu_winograd_available() {
#ifdef FRCNN_WINOGRAD
  return __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

void frcnn_cpu_winograd_conv(const float* x, const float* weight, const float* bias, const float* add,
                             bool relu, int64_t batch, int64_t height, int64_t width, int64_t channels,
                             int64_t filters, float* out) {
#ifdef FRCNN_WINOGRAD
  using namespace frcnn;
  const Geometry g{height, width, channels, filters, (height + 3) / 4, (width + 3) / 4};
  const int64_t tiles = batch * g.tiles_y * g.tiles_x;
  if (tiles == 0) return;
  // As many blocks for every thread, all of about the same size.
  const int64_t threads = thread_count();
  const int64_t per_thread = (tiles + threads * kBlock - 1) / (threads * kBlock);
  const int64_t wanted = (tiles + threads * per_thread - 1) / (threads * per_thread);
  const int64_t block = (wanted + kRows - 1) / kRows * kRows;
  const int64_t blocks = (tiles + block - 1) / block;
  std::atomic<int64_t> next_block{0};  // a free thread takes the next one
  parallel_for(std::min(blocks, threads), 1, [&](int64_t, int64_t) {
    const auto scratch = aligned_floats(kPoints * (input_stride(block, channels) + output_stride(block)));
    for (int64_t i = next_block++; i < blocks; i = next_block++) {
      convolve_block(x, weight, {bias, add, relu}, g, i * block, std::min(block, tiles - i * block), block,
                     scratch.get(), out);
    }
  });
#endif
}
