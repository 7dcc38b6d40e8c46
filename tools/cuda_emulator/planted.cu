// Kernels with one planted bug each, and the same kernels without it: proof that the emulator sees them.
#include "../../csrc/cuda/launch.h"

namespace frcnn {
namespace {

enum Bug {
  kNone,
  kMissingBarrier,
  kMissingWarpBarrier,
  kRace,
  kOutOfBounds,
  kUninitialized,
  kDivergentBarrier,
  kMissingFence,
  kSharedOutOfBounds,
  kMisaligned
};

// The values of a block in reverse order, through shared memory.
__global__ void reverse_kernel(const float* in, float* out, int bug) {
  FRCNN_SHARED(values, float[64]);
  const int t = static_cast<int>(threadIdx.x);
  if (bug != kUninitialized || t != 5)
    values[bug == kSharedOutOfBounds ? t + 1 : t] = in[blockIdx.x * 64 + t];
  if (bug != kMissingBarrier && (bug != kDivergentBarrier || t < 40)) __syncthreads();
  out[blockIdx.x * 64 + t + (bug == kOutOfBounds ? 1 : 0)] = values[63 - t];
}

// Neighbors swap through shared memory, within a warp.
__global__ void swap_kernel(const float* in, float* out, int bug) {
  FRCNN_SHARED(values, float[64]);
  const int t = static_cast<int>(threadIdx.x);
  values[t] = in[blockIdx.x * 64 + t];
  if (bug != kMissingWarpBarrier) __syncwarp();
  out[blockIdx.x * 64 + t] = values[t ^ 1];
}

// The sum of all values: block sums, added up by the block that finishes last.
__global__ void sum_kernel(const float* in, float* partial, unsigned* counter, float* out, int bug) {
  FRCNN_SHARED(last, bool);
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int i = 0; i < 64; ++i) sum += in[blockIdx.x * 64 + i];
    if (bug == kRace) *out += sum;
    partial[blockIdx.x] = sum;
    if (bug != kMissingFence) __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
    *out = sum;
  }
}

// 16-byte loads.
__global__ void copy_kernel(const float* in, float* out, int bug) {
  const int t = static_cast<int>(threadIdx.x);
  if (bug == kMisaligned && t == 63) return;
  const float4 v = *reinterpret_cast<const float4*>(in + t * 4 + (bug == kMisaligned ? 1 : 0));
  *reinterpret_cast<float4*>(out + t * 4) = v;
}

}  // namespace
}  // namespace frcnn

extern "C" {

cudaError_t planted_reverse(const float* in, float* out, int64_t blocks, int64_t bug, cudaStream_t stream) {
  return frcnn::launch(frcnn::reverse_kernel, dim3(static_cast<unsigned>(blocks)), dim3(64), 0, stream, in,
                       out, static_cast<int>(bug));
}
cudaError_t planted_swap(const float* in, float* out, int64_t blocks, int64_t bug, cudaStream_t stream) {
  return frcnn::launch(frcnn::swap_kernel, dim3(static_cast<unsigned>(blocks)), dim3(64), 0, stream, in, out,
                       static_cast<int>(bug));
}
cudaError_t planted_sum(const float* in, float* partial, unsigned* counter, float* out, int64_t blocks,
                        int64_t bug, cudaStream_t stream) {
  cudaMemsetAsync(counter, 0, sizeof(unsigned), stream);
  cudaMemsetAsync(out, 0, sizeof(float), stream);
  return frcnn::launch(frcnn::sum_kernel, dim3(static_cast<unsigned>(blocks)), dim3(64), 0, stream, in,
                       partial, counter, out, static_cast<int>(bug));
}
cudaError_t planted_copy(const float* in, float* out, int64_t bug, cudaStream_t stream) {
  return frcnn::launch(frcnn::copy_kernel, dim3(1), dim3(64), 0, stream, in, out, static_cast<int>(bug));
}
}
