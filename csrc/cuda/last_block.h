// The block that ends last goes on with what all blocks have left in device memory, in place of a second
// launch.
#pragma once

#include "launch.h"

namespace frcnn {

// Whether this block is the last of `blocks` to come here: what the others wrote before, it may read behind.
// finished: zero at the launch; last: in shared memory. Called by a whole block; begins with a barrier.
__device__ __forceinline__ bool ends_last(unsigned* finished, unsigned blocks, bool& last) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(finished, 1u) == blocks - 1;
  }
  __syncthreads();
  if (!last) return false;
  __threadfence();
  return true;
}

}  // namespace frcnn
