// Greedy suppression inside one block, shared by nms_block.cu and nms_large.cu.
//
// Candidates lie in shared memory, best first. They are taken 64 at a time: all warps compare the 64 with
// every box kept so far and with each other, then one warp resolves the 64, and the kept ones move to the
// front of the same array, which the next 64 meet. Only kept boxes are ever compared with: kept x n / 2
// pairs, no matrix.
#pragma once

#include "../threshold.h"
#include "block_sum.h"
#include "dtypes.h"

namespace frcnn {

constexpr int kNmsThreads = 1024, kNmsWarps = kNmsThreads / 32, kStep = 64;

// How many boxes the current GPU takes in a block: its shared memory holds 24 bytes for each, and little
// else.
inline cudaError_t boxes_in_block(int64_t* boxes) {
  int bytes = 0;
  const cudaError_t error = most_shared(&bytes);
  *boxes = bytes >= kFrcnnNmsBlock * 24 + 2048 ? kFrcnnNmsBlock : kFrcnnNmsBlock / 2;
  return error;
}

struct NmsShared {
  unsigned dropped[2];                    // of the 64: those a kept box suppresses
  unsigned long long suppressors[kStep];  // of each: the better ones among the 64 that would suppress it
  int kept;
  int of_warp[kNmsWarps];
};

// Decides about up to 64 candidates from `first` on, of `count`: `dropped` by boxes kept before, or by those
// of each other that a lane knows to suppress its own two, the better of the 64 only. Moves what is kept to
// the front, behind s.kept boxes, and returns it as bits. Called by one warp.
template <typename T>
__device__ unsigned long long settle(Box<T>* boxes, int* places, int first, int count,
                                     unsigned long long dropped, unsigned long long low_suppressors,
                                     unsigned long long high_suppressors, int max_keep, NmsShared& s) {
  const int lane = static_cast<int>(threadIdx.x) % 32, kept = s.kept;
  const unsigned long long low_bit = 1ull << lane, high_bit = low_bit << 32;
  const unsigned long long present = count - first >= kStep ? ~0ull : (1ull << (count - first)) - 1;
  // A candidate is kept once no suppressor of it is open, and dropped once one is kept. Every round settles
  // at least the first open one, usually most.
  unsigned long long open = present & ~dropped, keep = 0;
  while (open != 0) {
    const bool low_keeps = (open & low_bit) != 0 && (low_suppressors & (open | keep)) == 0;
    const bool high_keeps = (open & high_bit) != 0 && (high_suppressors & (open | keep)) == 0;
    keep |= __ballot_sync(kFullWarp, low_keeps);
    keep |= static_cast<unsigned long long>(__ballot_sync(kFullWarp, high_keeps)) << 32;
    const bool low_open = (open & low_bit) != 0 && ((keep & low_bit) | (low_suppressors & keep)) == 0;
    const bool high_open = (open & high_bit) != 0 && ((keep & high_bit) | (high_suppressors & keep)) == 0;
    open = __ballot_sync(kFullWarp, low_open);
    open |= static_cast<unsigned long long>(__ballot_sync(kFullWarp, high_open)) << 32;
  }
  const int low_rank = kept + __popcll(keep & (low_bit - 1)),
            high_rank = kept + __popcll(keep & (high_bit - 1));
  const bool low_moves = (keep & low_bit) != 0 && low_rank < max_keep;
  const bool high_moves = (keep & high_bit) != 0 && high_rank < max_keep;
  Box<T> low_box, high_box;
  int low_place = 0, high_place = 0;
  if (low_moves) {
    low_box = boxes[first + lane];
    low_place = places[first + lane];
  }
  if (high_moves) {
    high_box = boxes[first + lane + 32];
    high_place = places[first + lane + 32];
  }
  __syncwarp();
  if (low_moves) {
    boxes[low_rank] = low_box;
    places[low_rank] = low_place;
  }
  if (high_moves) {
    boxes[high_rank] = high_box;
    places[high_rank] = high_place;
  }
  const int total = kept + __popcll(keep);
  if (lane == 0) s.kept = total < max_keep ? total : max_keep;
  return keep;
}

// boxes, places [count]: in shared memory, best first; place: what the caller knows a box by, and the row of
// its group in `groups` (null: one group). Keeps at most max_keep and moves them to the front, in order;
// returns their number. Called by a whole block; starts and ends with a barrier.
template <typename T>
__device__ int suppress_in_block(Box<T>* boxes, int* places, int count, const int64_t* groups, T threshold,
                                 int max_keep, NmsShared& s) {
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  const Threshold<T> limit(threshold);
  const auto overlaps = [&](int a, int b) {
    return limit.exceeded(boxes[a], boxes[a].area(), boxes[b], boxes[b].area()) &&
           (groups == nullptr || groups[places[a]] == groups[places[b]]);
  };
  if (t == 0) s.kept = 0;
  for (int first = 0; first < count; first += kStep) {
    if (t < 2) s.dropped[t] = 0;
    __syncthreads();
    const int kept = s.kept;
    if (kept >= max_keep) break;

    // A lane owns a candidate, so that the 32 of a warp read the same kept box.
    const int candidate = first + t % kStep;
    bool dropped = false;
    if (candidate < count) {
      for (int k = t / kStep; k < kept && !dropped; k += kNmsThreads / kStep)
        dropped = overlaps(k, candidate);
    }
    const unsigned drops = __ballot_sync(kFullWarp, dropped);
    if (lane == 0 && drops != 0) atomicOr(&s.dropped[warp % 2], drops);
    for (int i = warp; i < kStep; i += kNmsWarps) {
      const int low = first + lane, high = low + 32, own = first + i;
      const unsigned low_word = __ballot_sync(kFullWarp, low < own && own < count && overlaps(low, own));
      const unsigned high_word = __ballot_sync(kFullWarp, high < own && own < count && overlaps(high, own));
      if (lane == 0) s.suppressors[i] = static_cast<unsigned long long>(high_word) << 32 | low_word;
    }
    __syncthreads();

    if (warp == 0) {
      const unsigned long long dropped_before =
          static_cast<unsigned long long>(s.dropped[1]) << 32 | s.dropped[0];
      settle(boxes, places, first, count, dropped_before, s.suppressors[lane], s.suppressors[lane + 32],
             max_keep, s);
    }
  }
  __syncthreads();
  return s.kept;
}

}  // namespace frcnn
