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
  kMisaligned,
  kFenceTooEarly,
  kWriteAfterRelease,
  kMissingAcquire,
  kAcquireTooEarly
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
    if (bug == kFenceTooEarly || bug == kWriteAfterRelease) __threadfence();
    if (bug != kWriteAfterRelease) partial[blockIdx.x] = sum;
    if (bug != kMissingFence && bug != kFenceTooEarly && bug != kWriteAfterRelease) __threadfence();
    if (bug == kAcquireTooEarly) __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
    if (bug == kWriteAfterRelease) partial[blockIdx.x] = sum;
    if (bug != kMissingAcquire && bug != kAcquireTooEarly) __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
    *out = sum;
  }
}

// The same, each thread with its own values: the fences stand on the far side of the barriers, once by all
// threads before it, once by the thread that does the atomic.
__global__ void sum_threads_kernel(const float* in, float* partial, unsigned* counter, float* out, int bug) {
  FRCNN_SHARED(last, bool);
  const unsigned t = threadIdx.x, own = blockIdx.x * 64 + t;
  partial[own] = in[own];
  const bool by_all = blockIdx.x % 2 == 0;
  if (bug != kMissingFence && by_all) __threadfence();
  __syncthreads();
  if (t == 0) {
    if (bug != kMissingFence && !by_all) __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
    if (bug != kMissingAcquire && !by_all) __threadfence();
  }
  __syncthreads();
  if (!last) return;
  if (bug != kMissingAcquire && by_all) __threadfence();
  if (t == 5) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x * 64; ++i) sum += partial[i];
    *out = sum;
  }
}

// Every block adds its values to what the block before it handed on. The blocks take their turns by a ticket,
// and all of them have to be under way at once where one waits for another.
__global__ void chain_kernel(const float* in, float* handed, unsigned* tickets, float* out, int bug) {
  if (threadIdx.x != 0) return;
  const unsigned own = atomicAdd(tickets, 1u);
  while (atomicAdd(tickets + 1, 0u) < own) {
  }
  if (bug != kMissingAcquire) __threadfence();
  float sum = own == 0 ? 0.0f : handed[own - 1];
  for (int i = 0; i < 64; ++i) sum += in[own * 64 + i];
  if (bug == kFenceTooEarly) __threadfence();
  handed[own] = sum;
  if (bug != kMissingFence && bug != kFenceTooEarly) __threadfence();
  if (own == gridDim.x - 1) *out = sum;
  atomicAdd(tickets + 1, 1u);
}

// The first block writes a number and raises a flag; the others answer what they then read, or -1. In the
// sound form a block that was told reads what was written.
__global__ void publish_kernel(float* data, unsigned* flag, float* out, int bug) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    if (bug == kFenceTooEarly) __threadfence();
    *data = 7;
    if (bug != kMissingFence && bug != kFenceTooEarly) __threadfence();
    atomicAdd(flag, 1u);
    out[0] = 7;
    return;
  }
  if (bug == kAcquireTooEarly) __threadfence();
  const bool told = atomicAdd(flag, 0u) != 0;
  if (bug != kMissingAcquire && bug != kAcquireTooEarly) __threadfence();
  out[blockIdx.x] = told ? *data : -1;
}

// Neighboring threads write and read `stride` values apart, in shared and in device memory.
__global__ void strided_kernel(float* out, int stride) {
  FRCNN_SHARED(values, float[1024]);
  const int at = static_cast<int>(threadIdx.x) * stride;
  values[at] = 1;
  out[at] = values[at];
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
cudaError_t planted_sum_threads(const float* in, float* partial, unsigned* counter, float* out,
                                int64_t blocks, int64_t bug, cudaStream_t stream) {
  cudaMemsetAsync(counter, 0, sizeof(unsigned), stream);
  return frcnn::launch(frcnn::sum_threads_kernel, dim3(static_cast<unsigned>(blocks)), dim3(64), 0, stream,
                       in, partial, counter, out, static_cast<int>(bug));
}
cudaError_t planted_chain(const float* in, float* handed, unsigned* tickets, float* out, int64_t blocks,
                          int64_t bug, cudaStream_t stream) {
  cudaMemsetAsync(tickets, 0, 2 * sizeof(unsigned), stream);
  return frcnn::launch(frcnn::chain_kernel, dim3(static_cast<unsigned>(blocks)), dim3(64), 0, stream, in,
                       handed, tickets, out, static_cast<int>(bug));
}
cudaError_t planted_publish(float* data, unsigned* flag, float* out, int64_t blocks, int64_t bug,
                            cudaStream_t stream) {
  cudaMemsetAsync(data, 0, sizeof(float), stream);
  cudaMemsetAsync(flag, 0, sizeof(unsigned), stream);
  return frcnn::launch(frcnn::publish_kernel, dim3(static_cast<unsigned>(blocks)), dim3(64), 0, stream, data,
                       flag, out, static_cast<int>(bug));
}
cudaError_t planted_strided(float* out, int64_t blocks, int64_t stride, cudaStream_t stream) {
  return frcnn::launch(frcnn::strided_kernel, dim3(static_cast<unsigned>(blocks)), dim3(32), 0, stream, out,
                       static_cast<int>(stride));
}
cudaError_t planted_copy(const float* in, float* out, int64_t bug, cudaStream_t stream) {
  return frcnn::launch(frcnn::copy_kernel, dim3(1), dim3(64), 0, stream, in, out, static_cast<int>(bug));
}
}
