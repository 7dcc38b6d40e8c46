// A random subset of each image's candidates, in the order of its slots: two launches, no sorting and no
// atomics. The first counts positives and negatives of every chunk of candidates. In the second a warp takes
// a slot: csrc/shuffle.h says which rank it takes, and the counts in which chunk the candidate of that rank
// is. Every block adds up the counts of all chunks anew.
//
// Bound by latency: the 268,569 anchors of an image are 2.1 MB, read once (a modeled 0.6 us at 3.35 TB/s);
// the second launch reads 8 KB of counts per block and one chunk per slot.
// Nothing was measured on a GPU.
#pragma once

#include "../shuffle.h"
#include "block_sum.h"

namespace frcnn {

constexpr int kDrawThreads = 256, kDrawWarps = kDrawThreads / 32;
constexpr int kChunk = 256;  // candidates
constexpr int kSpans = kDrawThreads;

struct DrawShared {
  int before[2][kSpans];  // of a span of chunks: how many are before it
  int of_warp[2][kDrawWarps];
};

inline int64_t chunks_of(int64_t n) { return div_up<int64_t>(n, kChunk); }
inline int64_t draw_workspace(int64_t batch, int64_t n) { return batch * chunks_of(n) * 2 * 4; }

// grid: (chunks, images). counts: [B, chunks, 2]
template <typename Assigned>
__global__ void __launch_bounds__(kDrawThreads)
    count_chunks_kernel(const Assigned assigned, int64_t n, int* __restrict__ counts) {
  FRCNN_SHARED(of_warp, int[2][kDrawWarps]);
  const int t = static_cast<int>(threadIdx.x);
  const int64_t i = int64_t{blockIdx.x} * kChunk + t;
  const int64_t gt = i < n ? assigned(blockIdx.y, i) : -1;
  const unsigned positive = __ballot_sync(kFullWarp, gt > 0), negative = __ballot_sync(kFullWarp, gt == 0);
  if (t % 32 == 0) {
    of_warp[0][t / 32] = __popc(positive);
    of_warp[1][t / 32] = __popc(negative);
  }
  __syncthreads();
  if (t >= 2) return;
  int sum = 0;
  for (int w = 0; w < kDrawWarps; ++w) sum += of_warp[t][w];
  counts[(int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * 2 + t] = sum;
}

// Fills s.before[kind] with the sums of the threads' own numbers before each; returns the sum of all. Ends
// with a barrier.
__device__ __forceinline__ int sum_before(int kind, int own, DrawShared& s) {
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  const int through = sum_through_warp(own);
  if (lane == 31) s.of_warp[kind][t / 32] = through;
  __syncthreads();
  int total = 0;
  for (int w = 0; w < kDrawWarps; ++w) {
    if (w == t / 32) s.before[kind][t] = total + through - own;
    total += s.of_warp[kind][w];
  }
  __syncthreads();
  return total;
}

// The candidate of this kind (0 positive, 1 negative) that has `rank` of its kind before it. Called by a
// whole warp.
template <typename Assigned>
__device__ int64_t candidate_of_rank(const Assigned& assigned, int64_t image, int64_t n, const int* counts,
                                     int64_t chunks, int64_t each, int kind, int rank, const DrawShared& s) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int span = 0;
  for (int step = kSpans / 2; step > 0; step /= 2)
    if (s.before[kind][span + step] <= rank) span += step;
  rank -= s.before[kind][span];
  int64_t chunk = span * each;
  for (; chunk + 1 < chunks; ++chunk) {
    const int own = counts[2 * chunk + kind];
    if (rank < own) break;
    rank -= own;
  }
  for (int64_t first = chunk * kChunk; first < n; first += 32) {
    const int64_t gt = first + lane < n ? assigned(image, first + lane) : -1;
    const bool of_kind = kind == 0 ? gt > 0 : gt == 0;
    const unsigned votes = __ballot_sync(kFullWarp, of_kind);
    const int own = __popc(votes);
    if (rank < own) {
      const bool found = of_kind && __popc(votes & ((1u << lane) - 1u)) == rank;
      return first + __ffs(static_cast<int>(__ballot_sync(kFullWarp, found))) - 1;
    }
    rank -= own;
  }
  return -1;  // never: the counts say that it is there
}

// grid: (parts of the slots, images). write(image, slot, candidate), called by one thread for every slot.
template <typename Assigned, typename Write>
__global__ void __launch_bounds__(kDrawThreads)
    draw_kernel(const Assigned assigned, const Write write, int64_t n, int64_t slots, int64_t most_positive,
                const int64_t* __restrict__ seed, const int* __restrict__ all_counts,
                int64_t* __restrict__ drawn_counts) {
  FRCNN_SHARED(s, DrawShared);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  const int64_t image = blockIdx.y, chunks = (n + kChunk - 1) / kChunk, each = (chunks + kSpans - 1) / kSpans;
  const int* const counts = all_counts + image * chunks * 2;
  int own[2] = {0, 0};
  for (int64_t chunk = t * each; chunk < (t + 1) * each && chunk < chunks; ++chunk) {
    own[0] += counts[2 * chunk];
    own[1] += counts[2 * chunk + 1];
  }
  const int there[2] = {sum_before(0, own[0], s), sum_before(1, own[1], s)};
  const Draws draws = draws_of(there[0], there[1], slots, most_positive, static_cast<uint64_t>(*seed), image);
  const int positives = static_cast<int>(draws.positive.drawn);
  const int used = positives + static_cast<int>(draws.negative.drawn);
  if (blockIdx.x == 0 && t == 0) {
    drawn_counts[2 * image] = positives;
    drawn_counts[2 * image + 1] = used - positives;
  }
  const int64_t slot = int64_t{blockIdx.x} * kDrawWarps + t / 32;
  if (slot >= slots) return;
  int64_t candidate = -1;
  if (slot < used) {
    const int kind = slot < positives ? 0 : 1;
    const unsigned place = static_cast<unsigned>(slot) - (kind == 0 ? 0u : static_cast<unsigned>(positives));
    const unsigned rank = kind == 0 ? draws.positive.rank(place) : draws.negative.rank(place);
    candidate = candidate_of_rank(assigned, image, n, counts, chunks, each, kind, static_cast<int>(rank), s);
  }
  if (lane == 0) write(image, slot, candidate);
}

template <typename Assigned, typename Write>
cudaError_t draw_slots(const Assigned& assigned, const Write& write, int64_t batch, int64_t n, int64_t slots,
                       int64_t most_positive, const int64_t* seed, void* workspace, int64_t* counts,
                       cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  if (batch > 65535 || n > INT32_MAX || slots > INT32_MAX) return cudaErrorInvalidValue;
  int* const of_chunks = static_cast<int*>(workspace);
  const unsigned images = static_cast<unsigned>(batch);
  if (n > 0) {
    const cudaError_t error =
        launch(count_chunks_kernel<Assigned>, dim3(static_cast<unsigned>(chunks_of(n)), images),
               dim3(kDrawThreads), 0, stream, assigned, n, of_chunks);
    if (error != cudaSuccess) return error;
  }
  const int64_t parts = div_up<int64_t>(slots > 0 ? slots : 1, kDrawWarps);  // the counts are written anyway
  return launch(draw_kernel<Assigned, Write>, dim3(static_cast<unsigned>(parts), images), dim3(kDrawThreads),
                0, stream, assigned, write, n, slots, most_positive, seed, static_cast<const int*>(of_chunks),
                counts);
}

}  // namespace frcnn
