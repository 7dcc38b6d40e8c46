// Sums and ranks over a block or a warp; of floating-point numbers over a fixed tree: the same bits every
// time.
#pragma once

#include "launch.h"

namespace frcnn {

// The sum over the block's threads, in thread 0. of_warp: one number for each warp, in shared memory; a
// second call needs a barrier or memory of its own.
template <int kThreads>
__device__ __forceinline__ double block_sum(double v, double* of_warp) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_down_sync(kFullWarp, v, step);
  const int t = static_cast<int>(threadIdx.x);
  if (t % 32 == 0) of_warp[t / 32] = v;
  __syncthreads();
  if (t == 0) {
    for (int w = 1; w < kThreads / 32; ++w) v += of_warp[w];
  }
  return v;
}

// The sum over the warp's lanes up to this one, its own included. Called by a whole warp.
template <typename T>
__device__ __forceinline__ T sum_through_warp(T through) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int step = 1; step < 32; step *= 2) {
    const T other = __shfl_up_sync(kFullWarp, through, step);
    if (lane >= step) through += other;
  }
  return through;
}

// The sum over the block's threads before this one, and over all. Called by a whole block; of_warp, one
// number for each warp in shared memory, may be used again after it.
template <int kWarps, typename T>
__device__ __forceinline__ T sum_before_in_block(T own, T* of_warp, T* total) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const T through = sum_through_warp(own);
  if (threadIdx.x % 32 == 31) of_warp[warp] = through;
  __syncthreads();
  T before = through - own, sum = 0;
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? of_warp[w] : 0;
    sum += of_warp[w];
  }
  __syncthreads();
  *total = sum;
  return before;
}

// The number of threads before this one for which `chosen` holds, and of all. Called by a whole block of up
// to 32 warps; of_warp as above.
template <int kWarps>
__device__ __forceinline__ int rank_in_block(bool chosen, int* of_warp, int* total) {
  static_assert(kWarps <= 32);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  const unsigned votes = __ballot_sync(kFullWarp, chosen);
  if (lane == 0) of_warp[warp] = __popc(votes);
  __syncthreads();
  // Over the warps up to the one that the lane stands for.
  const int through = sum_through_warp(lane < kWarps ? of_warp[lane] : 0);
  const int before = __shfl_sync(kFullWarp, through, warp > 0 ? warp - 1 : 0);
  *total = __shfl_sync(kFullWarp, through, 31);
  __syncthreads();
  return (warp > 0 ? before : 0) + __popc(votes & ((1u << lane) - 1u));
}

}  // namespace frcnn
