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
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "../checks.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FRCNN_WINOGRAD 1
#endif

namespace frcnn {
namespace {

constexpr int64_t kPoints = 36;  // elements of a 6x6 input tile
constexpr int64_t kLanes = 16;   // floats in a vector
constexpr int64_t kPanel = 32;   // filters that one product computes
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

#endif  // FRCNN_WINOGRAD

bool available() {
#ifdef FRCNN_WINOGRAD
  return __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

at::Tensor winograd_conv(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& add, bool relu) {
  const char* op = "winograd_conv";
  TORCH_CHECK_NOT_IMPLEMENTED(available(), op, ": needs an x86-64 CPU with AVX-512");
  expect_shape({op, "x", x}, {-1, -1, -1, -1}, "[B, C, H, W]");
  expect_shape({op, "weight", weight}, {-1, kPoints, -1, kPanel}, "[K / 32, 36, C, 32]");
  expect_dtype({op, "x", x}, {at::kFloat}, "float32");
  expect_like({op, "weight", weight}, {op, "x", x});
  const int64_t channels = x.size(1), filters = weight.size(0) * kPanel;  // no overflow: a size is 31 bits
  TORCH_CHECK(channels == weight.size(2), op, ": x has ", channels, " channels but weight is for ",
              weight.size(2));
  TORCH_CHECK(channels % kLanes == 0, op, ": x has ", channels, " channels, expected a multiple of ", kLanes);
  if (bias) {
    expect_shape({op, "bias", *bias}, {filters}, "[K]");
    expect_like({op, "bias", *bias}, {op, "x", x});
  }
  if (add) {
    expect_shape({op, "add", *add}, {x.size(0), filters, x.size(2), x.size(3)}, "[B, K, H, W]");
    expect_like({op, "add", *add}, {op, "x", x});
  }
  expect_elements(op, "the result", {x.size(0), filters, x.size(2), x.size(3)});
  auto out = at::empty({x.size(0), filters, x.size(2), x.size(3)},
                       x.options().memory_format(at::MemoryFormat::ChannelsLast));
#ifdef FRCNN_WINOGRAD
  const at::Tensor image = x.contiguous(at::MemoryFormat::ChannelsLast), panels = weight.contiguous();
  const at::Tensor shift = bias ? bias->contiguous() : at::Tensor();
  const at::Tensor added = add ? add->contiguous(at::MemoryFormat::ChannelsLast) : at::Tensor();
  const Geometry g{x.size(2), x.size(3), channels, filters, (x.size(2) + 3) / 4, (x.size(3) + 3) / 4};
  const int64_t tiles = x.size(0) * g.tiles_y * g.tiles_x;
  if (tiles == 0) return out;
  // As many blocks for every thread, all of about the same size.
  const int64_t threads = at::get_num_threads();
  const int64_t per_thread = (tiles + threads * kBlock - 1) / (threads * kBlock);
  const int64_t wanted = (tiles + threads * per_thread - 1) / (threads * per_thread);
  const int64_t block = (wanted + kRows - 1) / kRows * kRows;
  const float *source = image.const_data_ptr<float>(), *u = panels.const_data_ptr<float>();
  const Epilogue epilogue{bias ? shift.const_data_ptr<float>() : nullptr,
                          add ? added.const_data_ptr<float>() : nullptr, relu};
  float* target = out.mutable_data_ptr<float>();
  const int64_t blocks = (tiles + block - 1) / block;
  std::atomic<int64_t> next_block{0};  // a free thread takes the next one
  at::parallel_for(0, std::min(blocks, threads), 1, [&](int64_t, int64_t) {
    const auto scratch = at::empty({kPoints * (input_stride(block, channels) + output_stride(block))},
                                   at::TensorOptions().dtype(at::kFloat));
    for (int64_t i = next_block++; i < blocks; i = next_block++) {
      convolve_block(source, u, epilogue, g, i * block, std::min(block, tiles - i * block), block,
                     scratch.mutable_data_ptr<float>(), target);
    }
  });
#endif
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(frcnn_ops, CPU, m) { m.impl("winograd_conv", &winograd_conv); }

}  // namespace frcnn
