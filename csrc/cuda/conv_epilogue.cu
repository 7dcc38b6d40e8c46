// What follows a convolution: its bias, the sum with another map and the ReLU, in one pass, rounded once. A
// thread holds as many neighboring channels as fit into 16 bytes; the bias is in L1 for all of them.
//
// Bound by bytes: twice the map, three times with a sum, and a sum with a map of half the size reads a
// quarter of it. FPN's finest level, 256x200x336 in bfloat16, modeled at 3.35 TB/s: 23 us with the coarser
// level, 31 with a map of its size. Nothing was measured on a GPU.
#include "../nearest.h"
#include "dtypes.h"

namespace frcnn {
namespace {

constexpr int kThreads = 256;

struct Shape {
  unsigned packs;  // along the channels
  unsigned height, width;
  int add_height, add_width;
  float row_scale, column_scale;
  bool relu, same;  // same: the other map has this one's size
};

// The pack of the other map that is added to pack i.
__device__ __forceinline__ int64_t added(const Shape& s, unsigned i) {
  if (s.same) return i;
  const unsigned cell = i / s.packs, row = cell / s.width, image = row / s.height;
  const int y = nearest(static_cast<int>(row - image * s.height), s.row_scale, s.add_height);
  const int x = nearest(static_cast<int>(cell - row * s.width), s.column_scale, s.add_width);
  return ((int64_t{image} * s.add_height + y) * s.add_width + x) * s.packs + i % s.packs;
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    epilogue_kernel(const T* __restrict__ x, const T* __restrict__ bias, const T* __restrict__ add,
                    const __grid_constant__ Shape shape, unsigned packs, T* __restrict__ out) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= packs) return;
  const Pack<T, N> own = load_pack<T, N>(x + int64_t{i} * N),
                   shift = load_pack<T, N>(bias + i % shape.packs * N);
  Pack<T, N> other{}, result;
  if (add != nullptr) other = load_pack<T, N>(add + added(shape, i) * N);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    float value = widen(own.v[k]) + widen(shift.v[k]);
    if (add != nullptr) value += widen(other.v[k]);
    result.v[k] = narrow<T>(shape.relu && value < 0.0f ? 0.0f : value);
  }
  store_pack(out + int64_t{i} * N, result);
}

template <typename T, int N>
cudaError_t finish(const FrcnnEpilogue& e, T* out, cudaStream_t stream) {
  const int64_t packs = e.batch * e.height * e.width * (e.channels / N);
  if (packs > INT32_MAX) return cudaErrorInvalidValue;
  const Shape shape{static_cast<unsigned>(e.channels / N),
                    static_cast<unsigned>(e.height),
                    static_cast<unsigned>(e.width),
                    static_cast<int>(e.add_height),
                    static_cast<int>(e.add_width),
                    nearest_scale(e.add_height, e.height),
                    nearest_scale(e.add_width, e.width),
                    e.relu,
                    e.add_height == e.height && e.add_width == e.width};
  return launch(epilogue_kernel<T, N>, dim3(static_cast<unsigned>(div_up<int64_t>(packs, kThreads))),
                dim3(kThreads), 0, stream, static_cast<const T*>(e.x), static_cast<const T*>(e.bias),
                static_cast<const T*>(e.add), shape, static_cast<unsigned>(packs), out);
}

}  // namespace
}  // namespace frcnn

extern "C" int frcnn_cuda_conv_epilogue(int64_t type, const FrcnnEpilogue* epilogue, void* out,
                                        cudaStream_t stream) {
  using namespace frcnn;
  const FrcnnEpilogue& e = *epilogue;
  if (e.batch * e.height * e.width * e.channels == 0) return cudaSuccess;
  return for_half_or_float(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const bool packed = e.channels % kPack<T> == 0 && aligned_to_16(e.x) && aligned_to_16(e.bias) &&
                        aligned_to_16(e.add) && aligned_to_16(out);
    return packed ? finish<T, kPack<T>>(e, static_cast<T*>(out), stream)
                  : finish<T, 1>(e, static_cast<T*>(out), stream);
  });
}
