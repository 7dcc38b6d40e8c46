// NMS of any size: segments of rows that are already sorted, best first. Each segment is taken in chunks of
// 4096 boxes (2048 in float64, and half as many before compute capability 8.0). Round 0 suppresses every
// segment's first chunk in one block (nms_suppress.h) and lists the segments that have more. In a later round
// one launch compares each of those segments' next chunk with the boxes it has kept so far, all
// multiprocessors together, and another suppresses what is left of the chunk in one block and appends it to
// the kept boxes. Device memory is O(boxes); the number of rounds depends on the number of rows only, so
// nothing is read back.
//
// Bound by operations: kept x n / 2 pairs of about 20. 100,000 boxes of one class that keep 10,000: 10^10
// operations, a modeled 0.3 ms at 30 TFLOP/s, and 25 rounds of one block's chunk, a modeled 0.1 ms each,
// which dominate. A 100,000^2 mask would be 1.25 GB. Nothing was measured on a GPU.
#include "nms_suppress.h"

namespace frcnn {
namespace {

constexpr int kKeyThreads = 256, kPruneThreads = 256;
constexpr int kPruneBoxes = 64;   // candidates of a block; the threads split the kept boxes in four
constexpr int kPruneSplits = 4;   // blocks that share the kept boxes of the same candidates
constexpr int kMostBlocks = 528;  // that share the segments, where only the device knows how many there are

// float64 takes twice the memory, and old GPUs have half of it (boxes_in_block).
constexpr int kLeastChunk = kFrcnnNmsBlock / 4;

// As score_key(), but signed, as torch sorts no unsigned numbers, and of float64 too.
__device__ __forceinline__ int signed_key(float score) {
  if (!(score == score)) return INT32_MAX;
  const int bits = __float_as_int(score == 0.0f ? 0.0f : score);
  return bits < 0 ? bits & INT32_MAX : -bits;
}
__device__ __forceinline__ int64_t signed_key(double score) {
  if (!(score == score)) return INT64_MAX;
  const int64_t bits = __double_as_longlong(score == 0.0 ? 0.0 : score);
  return bits < 0 ? bits & INT64_MAX : -bits;
}

template <typename T, typename Key>
__global__ void __launch_bounds__(kKeyThreads)
    keys_kernel(const T* __restrict__ scores, int64_t n, Key* __restrict__ keys) {
  const int64_t i = int64_t{blockIdx.x} * kKeyThreads + threadIdx.x;
  if (i < n) keys[i] = signed_key(scores[i]);
}

__global__ void __launch_bounds__(kKeyThreads)
    segments_kernel(const int64_t* __restrict__ ids, int64_t n, int64_t* __restrict__ starts,
                    int64_t* __restrict__ count) {
  const int64_t i = int64_t{blockIdx.x} * kKeyThreads + threadIdx.x;
  if (i >= n) return;
  const int64_t id = ids[i];
  if (i == 0 || ids[i - 1] != id) starts[id - 1] = i;
  if (i == n - 1) {
    starts[id] = n;
    *count = id;
  }
}

template <typename T>
struct Sorted {
  const T *boxes, *scores;
  const int64_t *order, *starts, *segment_count;
  int64_t segments, n;
  int chunk;  // rows that are taken at a time
  T threshold;
  int64_t max_keep;
  // Workspace: a segment's kept boxes from its own start on, and how many there are; the segments of more
  // than one chunk, in no particular order, and how many; a bit per row that a kept box of an earlier chunk
  // suppresses.
  Box<T>* kept;
  int64_t *kept_count, *longer;
  unsigned long long* longer_count;
  unsigned* dropped;
  uint8_t* keep;
  int64_t *indices, *counts;

  __device__ __forceinline__ int64_t segment_total() const {
    return starts != nullptr ? *segment_count : segments;
  }
  __device__ __forceinline__ int64_t start_of(int64_t s) const {
    return starts != nullptr ? starts[s] : s * n;
  }
  // The box at a place of segment s.
  __device__ __forceinline__ int64_t row_at(int64_t s, int64_t place) const {
    return order[place] + (starts != nullptr ? 0 : s * n);
  }
};

// grid: (groups of candidates of a chunk, splits of the kept boxes, longer segments; the last wraps around)
template <typename T>
__global__ void __launch_bounds__(kPruneThreads) prune_kernel(Sorted<T> p, int64_t round) {
  const int t = static_cast<int>(threadIdx.x);
  const int64_t slots = static_cast<int64_t>(*p.longer_count);
  for (int64_t slot = blockIdx.z; slot < slots; slot += gridDim.z) {
    const int64_t s = p.longer[slot];
    const int64_t start = p.start_of(s), end = p.start_of(s + 1);
    const int64_t chunk = start + round * p.chunk;
    const int64_t row = chunk + int64_t{blockIdx.x} * kPruneBoxes + t % kPruneBoxes;
    if (chunk >= end) continue;
    const int64_t kept = p.kept_count[s];
    bool dropped = false;
    if (row < end && row < chunk + p.chunk) {
      const Box<T> box = load_box(p.boxes + p.row_at(s, row) * 4);
      const T area = box.area();
      const Threshold<T> limit(p.threshold);
      constexpr int kParts = kPruneThreads / kPruneBoxes;
      for (int64_t k = blockIdx.y * kParts + t / kPruneBoxes; k < kept && !dropped; k += gridDim.y * kParts) {
        const Box<T> other = p.kept[start + k];
        dropped = limit.exceeded(other, other.area(), box, area);
      }
    }
    // A warp's rows start at a multiple of 32 from the chunk's start, so a chunk's bits fill whole words.
    const unsigned drops = __ballot_sync(kFullWarp, dropped);
    if (t % 32 == 0 && drops != 0) atomicOr(&p.dropped[chunk / 32 + s + (row - chunk) / 32], drops);
  }
}

// grid: segments in round 0, then longer segments; wrapping around
template <typename T>
__global__ void __launch_bounds__(kNmsThreads) chunk_kernel(Sorted<T> p, int64_t round) {
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(s, NmsShared);
  Box<T>* const boxes = reinterpret_cast<Box<T>*>(memory);
  int* const places = reinterpret_cast<int*>(boxes + p.chunk);  // in the chunk
  const int t = static_cast<int>(threadIdx.x);
  const int64_t slots = round == 0 ? p.segment_total() : static_cast<int64_t>(*p.longer_count);
  for (int64_t slot = blockIdx.x; slot < slots; slot += gridDim.x) {
    const int64_t segment = round == 0 ? slot : p.longer[slot];
    const int64_t start = p.start_of(segment), end = p.start_of(segment + 1);
    const int64_t chunk = start + round * p.chunk;
    if (round > 0 && chunk >= end) continue;
    const int size = static_cast<int>(end - chunk < p.chunk ? end - chunk : p.chunk);
    const int64_t before = round > 0 ? p.kept_count[segment] : 0;

    // What earlier chunks left of this one, in order.
    int count = 0;
    for (int first = 0; first < size; first += kNmsThreads) {
      const int i = first + t;
      bool chosen = false;
      int64_t row = 0;
      if (i < size) {
        row = p.row_at(segment, chunk + i);
        chosen = round == 0 || (p.dropped[chunk / 32 + segment + i / 32] >> (i % 32) & 1u) == 0;
        if (p.scores != nullptr && p.scores[row] == -static_cast<T>(INFINITY)) chosen = false;
      }
      int found;
      const int rank = count + rank_in_block<kNmsWarps>(chosen, s.of_warp, &found);
      count += found;
      if (chosen) {
        boxes[rank] = load_box(p.boxes + row * 4);
        places[rank] = i;
      }
    }

    const int64_t most = p.max_keep - before < count ? p.max_keep - before : count;
    const int kept =
        suppress_in_block<T>(boxes, places, count, nullptr, p.threshold, static_cast<int>(most), s);
    for (int i = t; i < kept; i += kNmsThreads) {
      p.kept[start + before + i] = boxes[i];
      if (p.keep != nullptr) p.keep[chunk + places[i]] = 1;
      if (p.indices != nullptr) p.indices[segment * p.max_keep + before + i] = p.order[chunk + places[i]];
    }
    if (t == 0) {
      p.kept_count[segment] = before + kept;
      if (p.counts != nullptr) p.counts[segment] = before + kept;
      if (round == 0 && end - start > p.chunk) p.longer[atomicAdd(p.longer_count, 1ull)] = segment;
    }
  }
}

// The places of the workspace's parts for `total` rows; the last two are zeroed before use.
struct Parts {
  int64_t kept, kept_count, longer, longer_count, dropped, end;
};
Parts parts_of(int64_t type, int64_t total) {
  constexpr int64_t kWord = sizeof(int64_t);
  Parts parts;
  parts.kept = 0;
  parts.kept_count = total * (type == kFrcnnDouble ? sizeof(Box<double>) : sizeof(Box<float>));
  parts.longer = parts.kept_count + total * kWord;
  parts.longer_count = parts.longer + (total / kLeastChunk + 1) * kWord;
  parts.dropped = parts.longer_count + kWord;
  parts.end = parts.dropped + (total / 32 + total + 2) * static_cast<int64_t>(sizeof(unsigned));
  return parts;
}

}  // namespace
}  // namespace frcnn

extern "C" {

int frcnn_cuda_nms_keys(int64_t type, const void* scores, int64_t n, void* keys, cudaStream_t stream) {
  using namespace frcnn;
  if (n == 0) return cudaSuccess;
  dim3 blocks;
  if (!blocks_for(n, kKeyThreads, &blocks)) return cudaErrorInvalidValue;
  if (type == kFrcnnFloat)
    return launch(keys_kernel<float, int>, blocks, dim3(kKeyThreads), 0, stream,
                  static_cast<const float*>(scores), n, static_cast<int*>(keys));
  return launch(keys_kernel<double, int64_t>, blocks, dim3(kKeyThreads), 0, stream,
                static_cast<const double*>(scores), n, static_cast<int64_t*>(keys));
}

int frcnn_cuda_nms_segments(const int64_t* ids, int64_t n, int64_t* starts, int64_t* count,
                            cudaStream_t stream) {
  using namespace frcnn;
  if (n == 0) return cudaSuccess;
  dim3 blocks;
  if (!blocks_for(n, kKeyThreads, &blocks)) return cudaErrorInvalidValue;
  return launch(segments_kernel, blocks, dim3(kKeyThreads), 0, stream, ids, n, starts, count);
}

int64_t frcnn_cuda_nms_large_workspace(int64_t type, int64_t total) {
  return frcnn::parts_of(type, total).end;
}

int frcnn_cuda_nms_large(int64_t type, const FrcnnLargeNms* problem, void* workspace, cudaStream_t stream) {
  using namespace frcnn;
  if (problem->total == 0) return cudaSuccess;
  return for_box_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const Parts parts = parts_of(type, problem->total);
    int64_t in_block = 0;
    if (const cudaError_t error = boxes_in_block(&in_block)) return error;
    const int chunk = static_cast<int>(sizeof(T) == 8 ? in_block / 2 : in_block);
    unsigned char* const memory = static_cast<unsigned char*>(workspace);
    const Sorted<T> p{static_cast<const T*>(problem->boxes),
                      static_cast<const T*>(problem->scores),
                      problem->order,
                      problem->starts,
                      problem->segment_count,
                      problem->segments,
                      problem->n,
                      chunk,
                      static_cast<T>(problem->iou_threshold),
                      problem->max_keep,
                      reinterpret_cast<Box<T>*>(memory + parts.kept),
                      reinterpret_cast<int64_t*>(memory + parts.kept_count),
                      reinterpret_cast<int64_t*>(memory + parts.longer),
                      reinterpret_cast<unsigned long long*>(memory + parts.longer_count),
                      reinterpret_cast<unsigned*>(memory + parts.dropped),
                      problem->keep,
                      problem->indices,
                      problem->counts};
    const int64_t most_segments = problem->starts != nullptr ? problem->total : problem->segments;
    const int64_t longest = problem->starts != nullptr ? problem->total : problem->n;
    const unsigned blocks = static_cast<unsigned>(most_segments < kMostBlocks ? most_segments : kMostBlocks);
    const int64_t most_longer = problem->total / chunk;
    const unsigned longer = static_cast<unsigned>(most_longer < kMostBlocks ? most_longer : kMostBlocks);
    const size_t bytes = static_cast<size_t>(chunk) * (sizeof(Box<T>) + sizeof(int));
    cudaError_t error =
        cudaMemsetAsync(p.longer_count, 0, static_cast<size_t>(parts.end - parts.longer_count), stream);
    if (error == cudaSuccess && problem->keep != nullptr)
      error = cudaMemsetAsync(problem->keep, 0, static_cast<size_t>(problem->total), stream);
    if (error == cudaSuccess && problem->indices != nullptr)
      error = cudaMemsetAsync(problem->indices, 0xff,
                              static_cast<size_t>(problem->segments * problem->max_keep) * sizeof(int64_t),
                              stream);
    for (int64_t round = 0; error == cudaSuccess && round * chunk < longest; ++round) {
      if (round > 0)
        error =
            launch(prune_kernel<T>, dim3(static_cast<unsigned>(chunk / kPruneBoxes), kPruneSplits, longer),
                   dim3(kPruneThreads), 0, stream, p, round);
      if (error == cudaSuccess)
        error = launch(chunk_kernel<T>, dim3(round == 0 ? blocks : longer), dim3(kNmsThreads), bytes, stream,
                       p, round);
    }
    return error;
  });
}
}
