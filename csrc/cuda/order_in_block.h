// Ordering 64-bit keys inside one block: all of a few thousand in shared memory, or the lowest of any number
// in device memory. Keys are (what to order by, who it is): no two are equal, so the result does not depend
// on the order in which threads run.
#pragma once

#include "../score_key.h"
#include "block_sum.h"

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

// Turns the first `count` sorted keys into the caller's places, which lie in the same memory: place_of(i,
// key) for the key at i. A place takes half a key, and keys are read a barrier before places are written, so
// none is overwritten unread. Called by a whole block after a barrier.
template <int kThreads, typename F>
__device__ __forceinline__ int* places_of_keys(Key* keys, int count, const F& place_of) {
  int* const places = reinterpret_cast<int*>(keys);
  for (int first = 0; first < count; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const int place = i < count ? place_of(i, keys[i]) : 0;
    __syncthreads();
    if (i < count) places[i] = place;
  }
  return places;
}

constexpr int kDigits = 256;  // a digit is a byte of a key

struct OrderShared {
  int of_digit[kDigits];
  int digit, below, chosen;
  int total, taken;
};

// The digit in which the running sum of s.of_digit reaches `count`, the sum below it, and the digit's own; -1
// if it never does. Called by a whole block after a barrier; ends with one.
__device__ __forceinline__ void find_digit(int count, OrderShared& s) {
  constexpr int kEach = kDigits / 32;
  const int t = static_cast<int>(threadIdx.x);
  if (t < 32) {
    int own = 0;
    for (int i = 0; i < kEach; ++i) own += s.of_digit[t * kEach + i];
    const int through = sum_through_warp(own);
    int below = through - own;
    const bool here = below < count && count <= through;
    if (here) {
      int digit = t * kEach;
      while (below + s.of_digit[digit] < count) below += s.of_digit[digit++];
      s.digit = digit;
      s.below = below;
      s.chosen = s.of_digit[digit];
    }
    if (__ballot_sync(kFullWarp, here) == 0 && t == 0) s.digit = -1;
  }
  __syncthreads();
}

// The largest of the `count` lowest of `total` keys, key_of(i) for i below total; 0 < count <= total. One
// pass over the keys per byte, from the highest, until all keys of the byte's value are wanted: most often
// three or four passes. Called by a whole block; starts and ends with a barrier.
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
    find_digit(count, s);
    prefix |= static_cast<Key>(s.digit) << shift;
    mask |= static_cast<Key>(kDigits - 1) << shift;
    count -= s.below;
    if (s.chosen == count || shift == 0) return prefix | ~mask;
  }
}

// Writes the `count` lowest of `total` keys to keys [size], in shared memory, ascending and followed by
// kLastKey; count <= total, count <= size, size a power of two. Called by a whole block; ends with a barrier.
template <int kThreads, typename F>
__device__ void lowest_in_block(const F& key_of, int64_t total, int count, int size, Key* keys,
                                OrderShared& s) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) s.taken = 0;
  const Key limit = count > 0 ? limit_of_lowest<kThreads>(key_of, total, count, s) : 0;
  __syncthreads();
  for (int64_t i = t; i < total && count > 0; i += kThreads) {
    const Key key = key_of(i);
    if (key <= limit) keys[atomicAdd(&s.taken, 1)] = key;  // in any order: they are sorted next
  }
  for (int i = count + t; i < size; i += kThreads) keys[i] = kLastKey;
  __syncthreads();
  sort_in_block<kThreads>(keys, size);
}

// Lists of keys in device memory: list l has counts[l] of them from keys + l * each on.
struct KeyLists {
  const Key* keys;
  const int* counts;
  int64_t lists;
  unsigned each;  // lists * each fits 32 bits
};

// lowest_in_block of all lists together, at most `most`; returns how many there are.
template <int kThreads>
__device__ int lowest_of_lists(const KeyLists& l, int most, int size, Key* keys, OrderShared& s) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) s.total = 0;
  __syncthreads();
  int own = 0;
  for (int64_t i = t; i < l.lists; i += kThreads) own += l.counts[i];
  if (own > 0) atomicAdd(&s.total, own);
  __syncthreads();
  const int count = s.total < most ? s.total : most;
  const auto key_of = [&](int64_t at) {
    const unsigned i = static_cast<unsigned>(at), list = i / l.each;
    return static_cast<int>(i - list * l.each) < l.counts[list] ? l.keys[i] : kLastKey;
  };
  lowest_in_block<kThreads>(key_of, l.lists * l.each, count, size, keys, s);
  return count;
}

inline int power_of_two(int64_t n) {
  int size = 1;
  while (size < n) size *= 2;
  return size;
}

}  // namespace frcnn
