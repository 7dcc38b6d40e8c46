// Ordering 64-bit keys inside one block: all of a few thousand in shared memory, or the lowest of any number
// in device memory. Keys are (what to order by, who it is): no two are equal, so the result does not depend
// on the order in which threads run.
#pragma once

#include "launch.h"

namespace frcnn {

using Key = unsigned long long;
constexpr Key kLastKey = ~Key{0};

// Bitonic sort, ascending; `size` is a power of two. Called by a whole block after a barrier; ends with one.
template <int kThreads>
__device__ __forceinline__ void sort_in_block(Key* keys, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < size / 2; i += kThreads) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const Key a = keys[low], b = keys[high];
        if ((a > b) == ((low & run) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

constexpr int kDigits = 256;  // a digit is a byte of a key

struct OrderShared {
  int of_digit[kDigits];
  int digit, below, chosen;
};

// The largest of the `count` lowest of total keys, key_of(i) for i below total; 0 < count <= total. One pass
// over the keys per byte, from the highest, until all keys of the byte's value are wanted: most often three
// or four passes. Called by a whole block; starts and ends with a barrier.
template <int kThreads, typename F>
__device__ Key limit_of_lowest(const F& key_of, int64_t total, int count, OrderShared& s) {
  const int t = static_cast<int>(threadIdx.x);
  Key prefix = 0, mask = 0;
  for (int shift = 56;; shift -= 8) {
    __syncthreads();
    for (int i = t; i < kDigits; i += kThreads) s.of_digit[i] = 0;
    __syncthreads();
    for (int64_t i = t; i < total; i += kThreads) {
      const Key key = key_of(i);
      if ((key & mask) == prefix) atomicAdd(&s.of_digit[(key >> shift) & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (t < 32) {  // the digit in which the count is reached: a lane sums eight
      int own = 0;
      for (int i = 0; i < kDigits / 32; ++i) own += s.of_digit[t * (kDigits / 32) + i];
      int through = own;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(kFullWarp, through, step);
        if (t >= step) through += other;
      }
      int below = through - own;
      if (below < count && count <= through) {
        int digit = t * (kDigits / 32);
        while (below + s.of_digit[digit] < count) below += s.of_digit[digit++];
        s.digit = digit;
        s.below = below;
        s.chosen = s.of_digit[digit];
      }
    }
    __syncthreads();
    prefix |= static_cast<Key>(s.digit) << shift;
    mask |= static_cast<Key>(kDigits - 1) << shift;
    count -= s.below;
    if (s.chosen == count || shift == 0) return prefix | ~mask;
  }
}

inline int power_of_two(int64_t n) {
  int size = 1;
  while (size < n) size *= 2;
  return size;
}

}  // namespace frcnn
