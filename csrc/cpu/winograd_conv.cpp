// 3x3 convolution by Winograd's minimal filtering F(4x4, 3x3), float32, channels-last, for AVX-512, AVX2 and
// NEON.
//
// A tile of 4x4 outputs costs 36 products per channel pair instead of 144 (Lavin and Gray, "Fast Algorithms
// for Convolutional Neural Networks", 2015): Y = A' [(G g G') . (B' d B)] A, where the middle product, summed
// over channels, is 36 matrix products. The interpolation points are 0, +-3/4, +-3/2 and infinity: their
// powers are exact in binary and of similar size, which costs a third of the rounding error of the usual
// 0, +-1, +-2 (about 3e-6 of the largest output, where a direct sum has 2e-7).
//
// A block of tiles stays in the caches from the first transform to the last, so memory sees the input once,
// the output once and, per block, the weights.
#include <memory>
#include <new>

#include "parallel.h"
#include "vectorize.h"
#include "winograd.h"

#if defined(__GNUC__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in gcc's own intrinsics
#endif

#if defined(__x86_64__)
#include <immintrin.h>

#define FRCNN_SET avx512  // 12 x 2 sums fill 24 of 32 registers
#define FRCNN_TARGET __attribute__((target("avx512f")))
#define FRCNN_LANES 16
#define FRCNN_ROWS 12
#define FRCNN_FILTERS 32
#define FRCNN_FMA _mm512_fmadd_ps
#include "winograd_vectors.h"

#define FRCNN_SET avx2  // 6 x 2 sums, two vectors of weights and one of inputs: 15 of 16 registers
#define FRCNN_TARGET __attribute__((target("avx2,fma")))
#define FRCNN_LANES 8
#define FRCNN_ROWS 6
#define FRCNN_FILTERS 16
#define FRCNN_FMA _mm256_fmadd_ps
#include "winograd_vectors.h"

#elif defined(__aarch64__)
#include <arm_neon.h>

#define FRCNN_SET neon  // 6 x 4 sums fill 24 of 32 registers
#define FRCNN_TARGET
#define FRCNN_LANES 4
#define FRCNN_ROWS 6
#define FRCNN_FILTERS 16
#define FRCNN_FMA(a, b, c) vfmaq_f32(c, a, b)
#include "winograd_vectors.h"
#endif
#endif  // __GNUC__

namespace frcnn::winograd {
namespace {

constexpr int64_t kBlock = 48;    // tiles that share a pass over the weights, at most
constexpr int64_t kGranule = 12;  // a multiple of every set's rows
// Of the gradient: tiles that share a pass over the sums, at most, and the room that they may take, as they
// and the sums stay in the last cache.
constexpr int64_t kGradientTiles = 192, kGradientBytes = 32 << 20;

struct AlignedDelete {
  void operator()(float* values) const { ::operator delete(values, std::align_val_t{64}); }
};
std::unique_ptr<float, AlignedDelete> aligned_floats(int64_t count) {
  void* values = ::operator new(static_cast<size_t>(count) * sizeof(float), std::align_val_t{64});
  return std::unique_ptr<float, AlignedDelete>(static_cast<float*>(values));
}

// An instruction set's own.
struct Functions {
  void (*convolve)(const Block&);
  void (*transform_tile)(const Gradient&, int64_t first, int64_t t);
  void (*add_tiles)(const Gradient&, int64_t tiles, bool before, int64_t point, int64_t k);
  void (*transform_sums)(const Gradient&, int64_t c, float* out);
};
#define FRCNN_OF(set) \
  Functions { set::convolve, set::transform_tile, set::add_tiles, set::transform_sums }
Functions functions_with([[maybe_unused]] int64_t lanes) {
#if defined(__GNUC__) && defined(__x86_64__)
  return lanes == 16 ? FRCNN_OF(avx512) : FRCNN_OF(avx2);
#elif defined(__GNUC__) && defined(__aarch64__)
  return FRCNN_OF(neon);
#else
  return {};
#endif
}

void weight_gradient(const Functions& use, const float* x, const float* grad, int64_t batch,
                     const Geometry& g, float* out) {
  const int64_t tiles = batch * g.tiles_y * g.tiles_x;
  if (tiles == 0) return std::fill(out, out + 9 * g.channels * g.filters, 0.0f);
  // The same whatever the threads and the vectors are, as sums round by their order.
  const int64_t fit =
      kGradientBytes / (kPoints * static_cast<int64_t>(sizeof(float)) * (g.channels + g.filters));
  const int64_t at_once = std::clamp<int64_t>(fit, 1, kGradientTiles);
  const int64_t passes = (tiles + at_once - 1) / at_once, most = (tiles + passes - 1) / passes;
  const int64_t padded = (g.channels + kGranule - 1) / kGranule * kGranule;  // a product has whole rows
  const int64_t v_row = padded + (24 - padded % 16) % 16, m_row = g.filters + 16;
  const int64_t v_floats = kPoints * most * v_row, m_floats = kPoints * most * m_row,
                sums_floats = kPoints * padded * g.filters;
  const auto scratch = aligned_floats(v_floats + m_floats + sums_floats);
  float *v = scratch.get(), *m = v + v_floats, *sums = m + m_floats;
  const Gradient gradient{
      x, grad, g, v, m, sums, v_row, m_row, most * v_row, most * m_row, padded * g.filters};
  parallel_for(kPoints * most, 1 << 10, [&](int64_t row, int64_t end) {
    for (; row < end; ++row) std::fill(v + row * v_row + g.channels, v + (row + 1) * v_row, 0.0f);
  });
  const int64_t panels = g.filters / kFilters;
  for (int64_t first = 0; first < tiles; first += most) {
    const int64_t count = std::min(most, tiles - first);
    parallel_tasks(count, [&](int64_t t) { use.transform_tile(gradient, first, t); });
    parallel_tasks(kPoints * panels, [&](int64_t task) {
      use.add_tiles(gradient, count, first > 0, task / panels, task % panels * kFilters);
    });
  }
  parallel_tasks(g.channels, [&](int64_t c) { use.transform_sums(gradient, c, out); });
}

}  // namespace
}  // namespace frcnn::winograd

int64_t frcnn_cpu_winograd_lanes(int64_t most) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (most >= 16 && __builtin_cpu_supports("avx512f")) return 16;
  if (most >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#elif defined(__GNUC__) && defined(__aarch64__)
  if (most >= 4) return 4;
#endif
  return 0;
}

void frcnn_cpu_winograd_conv(int64_t lanes, const float* x, const float* weight, const float* bias,
                             const float* add, bool relu, int64_t batch, int64_t height, int64_t width,
                             int64_t channels, int64_t filters, float* out) {
  using namespace frcnn;
  using namespace frcnn::winograd;
  const Geometry g{height, width, channels, filters, (height + 3) / 4, (width + 3) / 4};
  const int64_t tiles = batch * g.tiles_y * g.tiles_x;
  if (tiles == 0) return;
  const auto convolve = functions_with(lanes).convolve;
  // As many blocks for every thread, all of about the same size.
  const int64_t threads = thread_count();
  const int64_t per_thread = (tiles + threads * kBlock - 1) / (threads * kBlock);
  const int64_t wanted = (tiles + threads * per_thread - 1) / (threads * per_thread);
  const int64_t most = (wanted + kGranule - 1) / kGranule * kGranule;
  const int64_t blocks = (tiles + most - 1) / most;
  std::atomic<int64_t> next_block{0};  // a free thread takes the next one
  parallel_for(std::min(blocks, threads), 1, [&](int64_t, int64_t) {
    const auto scratch = aligned_floats(scratch_floats(most, g));
    for (int64_t i = next_block++; i < blocks; i = next_block++) {
      const int64_t first = i * most;
      convolve(
          {x, weight, {bias, add, relu}, g, first, std::min(most, tiles - first), most, scratch.get(), out});
    }
  });
}

void frcnn_cpu_winograd_weight_gradient(int64_t lanes, const float* x, const float* grad, int64_t batch,
                                        int64_t height, int64_t width, int64_t channels, int64_t filters,
                                        float* out) {
  using namespace frcnn::winograd;
  const Geometry g{height, width, channels, filters, (height + 3) / 4, (width + 3) / 4};
  weight_gradient(functions_with(lanes), x, grad, batch, g, out);
}
