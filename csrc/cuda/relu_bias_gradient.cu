// The gradient of a ReLU and of the bias before it: the mask in one pass over the map, and the sums of its
// channels on the way. A block takes 128 bytes of channels and a part of the cells, 32 at a time; its sums go
// to the workspace, and a second launch, which is small, adds the parts. Everything is added in a fixed
// order.
//
// Bound by bytes: three times the map. FPN's finest level, two images of 256x200x336 in float32: 413 MB, a
// modeled 123 us at 3.35 TB/s. torch's mask and sum move four times the map, and its sum over all but the
// channels writes and reads again as much as the map in parts: 132 MiB there (torch 2.14.1 for 132
// multiprocessors), which also is memory at the peak of a training step. Nothing was measured on a GPU.
#include "dtypes.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256, kCells = 32;   // of a block, and that it looks at together
constexpr int kColumns = kThreads / kCells;  // of packs
constexpr int kBlocks = 512;                 // that fill any GPU
constexpr int kLeastCells = 256;             // of a part
constexpr int kLanes = 32, kAtOnce = 8;      // of the second launch: channels of a block, parts side by side

int64_t tiles_of(int64_t channels, int pack) { return div_up<int64_t>(channels, kColumns * pack); }

// How many parts the cells are shared in, of which kernels of either width make no more.
int64_t parts_of(int64_t cells, int64_t channels) {
  const int64_t tiles = tiles_of(channels, 4), most = div_up<int64_t>(cells, kLeastCells);
  const int64_t wanted = tiles < 1 ? 1 : kBlocks / tiles, parts = wanted < most ? wanted : most;
  return parts < 1 ? 1 : parts;
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    mask_kernel(const T* grad, const T* __restrict__ out, int cells, int channels, int cells_of_part,
                T* masked, compute_t<T>* __restrict__ partial) {
  using C = compute_t<T>;
  FRCNN_SHARED(sums, C[kCells][kColumns * N + 1]);
  const int column = static_cast<int>(threadIdx.x) % kColumns, row = static_cast<int>(threadIdx.x) / kColumns;
  const int first = (static_cast<int>(blockIdx.x) * kColumns + column) * N;  // channel
  const int begin = static_cast<int>(blockIdx.y) * cells_of_part;
  const int end = begin + cells_of_part < cells ? begin + cells_of_part : cells;
  C own[N] = {};
  if (first < channels) {
#pragma unroll 2
    for (int cell = begin + row; cell < end; cell += kCells) {
      const int64_t at = int64_t{cell} * channels + first;
      Pack<T, N> g = load_pack<T, N>(grad + at);
      const Pack<T, N> o = load_pack<T, N>(out + at);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (widen(o.v[k]) <= C{0}) g.v[k] = narrow<T>(C{0});
        own[k] += widen(g.v[k]);
      }
      store_pack(masked + at, g);
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) sums[row][column * N + k] = own[k];
  __syncthreads();
  const int channel = static_cast<int>(threadIdx.x),
            of_map = static_cast<int>(blockIdx.x) * kColumns * N + channel;
  if (channel >= kColumns * N || of_map >= channels) return;
  C sum = 0;
#pragma unroll
  for (int r = 0; r < kCells; ++r) sum += sums[r][channel];
  partial[int64_t{blockIdx.y} * channels + of_map] = sum;
}

template <typename T>
__global__ void __launch_bounds__(kLanes* kAtOnce)
    sum_kernel(const compute_t<T>* __restrict__ partial, int channels, int parts, T* __restrict__ by_bias) {
  using C = compute_t<T>;
  FRCNN_SHARED(sums, C[kAtOnce][kLanes]);
  const int lane = static_cast<int>(threadIdx.x) % kLanes, row = static_cast<int>(threadIdx.x) / kLanes;
  const int channel = static_cast<int>(blockIdx.x) * kLanes + lane;
  C sum = 0;
  if (channel < channels) {
    for (int part = row; part < parts; part += kAtOnce) sum += partial[int64_t{part} * channels + channel];
  }
  sums[row][lane] = sum;
  __syncthreads();
  if (row != 0 || channel >= channels) return;
  for (int r = 1; r < kAtOnce; ++r) sum += sums[r][lane];
  by_bias[channel] = narrow<T>(sum);
}

template <typename T, int N>
cudaError_t run(const T* grad, const T* out, int64_t cells, int64_t channels, compute_t<T>* partial,
                T* masked, T* by_bias, cudaStream_t stream) {
  const int64_t parts = parts_of(cells, channels), tiles = tiles_of(channels, N);
  if (cells > INT32_MAX - kThreads || channels > INT32_MAX - kThreads || parts > 65535) {
    return cudaErrorInvalidValue;
  }
  const int count = static_cast<int>(channels), of_part = static_cast<int>(div_up(cells, parts));
  const cudaError_t error =
      launch(mask_kernel<T, N>, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts)),
             dim3(kThreads), 0, stream, grad, out, static_cast<int>(cells), count, of_part, masked, partial);
  if (error != cudaSuccess) return error;
  return launch(sum_kernel<T>, dim3(static_cast<unsigned>(div_up<int64_t>(channels, kLanes))),
                dim3(kLanes * kAtOnce), 0, stream, partial, count, static_cast<int>(parts), by_bias);
}

}  // namespace
}  // namespace frcnn

extern "C" {

int64_t frcnn_cuda_relu_bias_gradient_workspace(int64_t type, int64_t cells, int64_t channels) {
  return frcnn::parts_of(cells, channels) * channels * (type == kFrcnnDouble ? 8 : 4);
}

int frcnn_cuda_relu_bias_gradient(int64_t type, const void* grad, const void* out, int64_t cells,
                                  int64_t channels, void* workspace, void* masked, void* by_bias,
                                  cudaStream_t stream) {
  using namespace frcnn;
  if (channels == 0) return cudaSuccess;
  return for_feature_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto *g = static_cast<const T*>(grad), *o = static_cast<const T*>(out);
    auto* const partial = static_cast<compute_t<T>*>(workspace);
    const bool packed =
        channels % kPack<T> == 0 && aligned_to_16(grad) && aligned_to_16(out) && aligned_to_16(masked);
    return packed ? run<T, kPack<T>>(g, o, cells, channels, partial, static_cast<T*>(masked),
                                     static_cast<T*>(by_bias), stream)
                  : run<T, 1>(g, o, cells, channels, partial, static_cast<T*>(masked),
                              static_cast<T*>(by_bias), stream);
  });
}
}
