// Greedy suppression of a segment by several blocks, shared by nms_block.cu and select_proposals.cu.
//
// Every block of a segment has all its boxes, best first, in shared memory: to order them in each costs no
// more time than in one for which the others would wait. A unit of work is 32 candidates against 32 better
// boxes: a lane owns a candidate and leaves 32 bits, which of the boxes suppress it. The units of a segment
// are spread over the warps of its blocks. The block that ends last sees all bits, and takes the candidates
// 64 at a time: are any of the kept boxes among their suppressors? One warp then resolves the 64
// (nms_suppress.h). A segment that has a block for itself needs no bits in device memory and takes
// suppress_in_block.
#pragma once

#include "last_block.h"
#include "nms_suppress.h"

namespace frcnn {

constexpr int kWord = 32;
constexpr int kMostWords = kFrcnnNmsBlock / kWord;
// Blocks of all segments together; about as many as a large GPU has multiprocessors.
constexpr int64_t kSpreadBlocks = 128;

// The blocks of each segment: at most what gives each warp a unit.
inline int blocks_per_segment(int64_t segments, int64_t n) {
  const int64_t words = div_up<int64_t>(n, kWord), most = div_up<int64_t>(words * (words + 1) / 2, kNmsWarps);
  const int64_t blocks = segments > 0 && kSpreadBlocks / segments < most ? kSpreadBlocks / segments : most;
  return blocks > 1 ? static_cast<int>(blocks) : 1;
}

// What the blocks of all segments share, in the workspace; bits[segment][word][candidate].
struct Spread {
  unsigned *bits, *finished;  // finished [segments]: zero at the launch; both null with a block per segment
  int words, blocks;          // per segment

  // Bytes of `bits`.
  static int64_t bytes(int64_t segments, int64_t n) {
    const int64_t words = div_up<int64_t>(n, kWord);
    return blocks_per_segment(segments, n) > 1 ? segments * words * words * kWord * 4 : 0;
  }
};

struct SpreadShared {
  NmsShared in_block;
  unsigned keep[kMostWords];  // bits of the kept candidates
  bool last;
};

// Boxes that shared memory has to hold for n: units read whole words of them.
inline int boxes_in_shared(int64_t n) {
  int size = kWord;
  while (size < n) size *= 2;
  return size;
}

// Leaves the bits of the units of one block. areas: of boxes; both padded to whole words.
__device__ __forceinline__ void compare_spread(const Box<float>* boxes, const float* areas, const int* places,
                                               int count, const int64_t* groups, Threshold<float> limit,
                                               unsigned* bits, int words, int block, int blocks) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int rows = (count + kWord - 1) / kWord;
  int row = 0, word = block * kNmsWarps + warp;  // words up to the row's own
  while (true) {
    while (word > row) word -= ++row;
    if (row >= rows) return;
    const int candidate = row * kWord + lane, first = word * kWord;
    const Box<float> own = boxes[candidate];
    const float area = areas[candidate];
    unsigned open = 0;
#pragma unroll 16
    for (int k = 0; k < kWord; ++k) {
      // Of a NaN either operand will do, as the areas are NaN then; and a negative width need not become 0.
      const Box<float> other = boxes[first + k];
      const float w = fminf(own.x2, other.x2) - fmaxf(own.x1, other.x1);
      const float h = fminf(own.y2, other.y2) - fmaxf(own.y1, other.y1);
      const float inter = w * fmaxf(h, 0.0f);
      if (limit.may_exceed(inter, areas[first + k] + area - inter)) open |= 1u << k;
    }
    if (word == row) open &= (1u << lane) - 1u;
    unsigned found = 0;
    while (open != 0) {
      const int k = __ffs(static_cast<int>(open)) - 1;
      open &= open - 1;
      if (limit.exceeded(boxes[first + k], areas[first + k], own, area) &&
          (groups == nullptr || groups[places[first + k]] == groups[places[candidate]]))
        found |= 1u << k;
    }
    if (candidate < count) bits[(word * words + row) * kWord + lane] = found;
    word += blocks * kNmsWarps;
  }
}

// What suppress_in_block does, by bits that all blocks have left.
__device__ __forceinline__ int reduce_spread(Box<float>* boxes, int* places, int count, const unsigned* bits,
                                             int words, int max_keep, SpreadShared& s) {
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  const int stride = words * kWord;
  if (t == 0) s.in_block.kept = 0;
  if (t < 2) s.in_block.dropped[t] = 0;
  for (int first = 0; first < count; first += kStep) {
    const int before = first / kWord, candidate = first + t % kStep;
    __syncthreads();
    if (s.in_block.kept >= max_keep) break;
    // The suppressors among the 64, of the two candidates that a lane of the first warp answers for.
    unsigned low = 0, high_low = 0, high_high = 0;
    if (warp == 0) {
      const unsigned* const own = bits + before * stride + first + lane;
      if (first + lane < count) low = own[0];
      if (first + lane + kWord < count) {
        high_low = own[kWord];
        high_high = own[stride + kWord];
      }
    }
    bool dropped = false;
    if (candidate < count) {
#pragma unroll 4
      for (int w = t / kStep; w < before; w += kNmsThreads / kStep)
        dropped |= (bits[w * stride + candidate] & s.keep[w]) != 0;
    }
    const unsigned drops = __ballot_sync(kFullWarp, dropped);
    if (lane == 0 && drops != 0) atomicOr(&s.in_block.dropped[warp % 2], drops);
    __syncthreads();
    if (warp == 0) {
      const unsigned long long by_kept =
          static_cast<unsigned long long>(s.in_block.dropped[1]) << 32 | s.in_block.dropped[0];
      const unsigned long long keep =
          settle(boxes, places, first, count, by_kept, low,
                 static_cast<unsigned long long>(high_high) << 32 | high_low, max_keep, s.in_block);
      if (lane < 2) {
        s.keep[before + lane] = static_cast<unsigned>(keep >> (lane * kWord));
        s.in_block.dropped[lane] = 0;
      }
    }
  }
  __syncthreads();
  return s.in_block.kept;
}

// suppress_in_block by all blocks of the segment, of which this is `block`. Only one of them gets to know:
// returns -1 in the others. areas: room for as many numbers as there are boxes, padded to whole words.
__device__ __forceinline__ int suppress_spread(Box<float>* boxes, float* areas, int* places, int count,
                                               const int64_t* groups, float threshold, int max_keep,
                                               const Spread& spread, int segment, int block,
                                               SpreadShared& s) {
  if (spread.blocks == 1)
    return suppress_in_block(boxes, places, count, groups, threshold, max_keep, s.in_block);
  const int t = static_cast<int>(threadIdx.x);
  unsigned* const bits = spread.bits + int64_t{segment} * spread.words * spread.words * kWord;
  __syncthreads();
  for (int i = t; i < (count + kWord - 1) / kWord * kWord; i += kNmsThreads) {
    if (i >= count) boxes[i] = {0, 0, 0, 0};
    areas[i] = boxes[i].area();
  }
  __syncthreads();
  compare_spread(boxes, areas, places, count, groups, Threshold<float>(threshold), bits, spread.words, block,
                 spread.blocks);
  if (!ends_last(&spread.finished[segment], static_cast<unsigned>(spread.blocks), s.last)) return -1;
  return reduce_spread(boxes, places, count, bits, spread.words, max_keep, s);
}

}  // namespace frcnn
