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

struct AlignedDelete {
  void operator()(float* values) const { ::operator delete(values, std::align_val_t{64}); }
};
std::unique_ptr<float, AlignedDelete> aligned_floats(int64_t count) {
  void* values = ::operator new(static_cast<size_t>(count) * sizeof(float), std::align_val_t{64});
  return std::unique_ptr<float, AlignedDelete>(static_cast<float*>(values));
}

using Convolve = void (*)(const Block&);
Convolve convolve_with([[maybe_unused]] int64_t lanes) {
#if defined(__GNUC__) && defined(__x86_64__)
  return lanes == 16 ? avx512::convolve : avx2::convolve;
#elif defined(__GNUC__) && defined(__aarch64__)
  return neon::convolve;
#else
  return nullptr;
#endif
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
  const Convolve convolve = convolve_with(lanes);
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
