// A sum over a block, over a fixed tree: the same bits every time.
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

}  // namespace frcnn
