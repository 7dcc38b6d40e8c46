// NMS of many small segments (image x class, image x level) in one launch: a block sorts up to 4096 boxes in
// shared memory and suppresses them there. A segment has a block for itself where there are many
// (nms_suppress.h); few are spread over several blocks each, which all sort the segment, share the
// comparisons and leave bits in device memory for the one of them that ends last (nms_spread.h; one memset
// more). Nothing goes through the host. For more boxes: nms_large.cu.
//
// Bound by latency: the sort's 55 barrier steps for 1024 keys, and the steps of 64 candidates of the block
// that ends last. Modeled (docs/performance.md): 17 us for the five levels of 1000 boxes of an image, 44 us
// for ten of 2000. Nothing was measured on a GPU.
//
// Keys are (score, index) in one 64-bit integer, so that sorting them breaks ties as promised: lower index
// first, NaN last, -0 equal to 0.
#include "nms_spread.h"
#include "order_in_block.h"

namespace frcnn {
namespace {

// grid: blocks of all segments. Dynamic shared memory: boxes [size], then keys [size]; size: n rounded up to
// a power of two. Boxes come first, so that nvcc knows them to lie at multiples of 16 bytes and moves each at
// once. One block at a time on a multiprocessor: for sm_100 the compiler would make room for two, with 32
// registers a thread, and spill.
__global__ void __launch_bounds__(kNmsThreads, 1)
    nms_block_kernel(const float* __restrict__ boxes, const float* __restrict__ scores,
                     const int64_t* __restrict__ groups, int n, int size, float threshold, int64_t max_keep,
                     bool drop_absent, Spread spread, int64_t* __restrict__ indices,
                     int64_t* __restrict__ counts) {
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(s, SpreadShared);
  FRCNN_SHARED(present, int);
  Box<float>* const sorted = reinterpret_cast<Box<float>*>(memory);
  unsigned long long* const keys = reinterpret_cast<unsigned long long*>(sorted + size);
  const int t = static_cast<int>(threadIdx.x);
  const int segment = static_cast<int>(blockIdx.x) / spread.blocks;
  const int block = static_cast<int>(blockIdx.x) - segment * spread.blocks;
  const float* const own_boxes = boxes + int64_t{segment} * n * 4;
  const float* const own_scores = scores + int64_t{segment} * n;

  if (t == 0) present = 0;
  __syncthreads();
  int own_present = 0;
  for (int i = t; i < size; i += kNmsThreads) {
    unsigned key = kAbsentScore;
    if (i < n) {
      const float score = own_scores[i];
      if (!drop_absent || score != -INFINITY) {
        key = score_key(score);
        ++own_present;
      }
    }
    keys[i] = static_cast<unsigned long long>(key) << 32 | static_cast<unsigned>(i);
  }
  if (own_present > 0) atomicAdd(&present, own_present);
  __syncthreads();
  sort_in_block<kNmsThreads>(keys, size);

  const int count = present;
  int* const places = places_of_keys<kNmsThreads>(keys, count, [&](int i, Key key) {
    const int own = static_cast<int>(key & 0xffffffffu);
    sorted[i] = load_box(own_boxes + own * 4);
    return own;
  });
  // Places take half of the keys' memory.
  const int kept = suppress_spread(sorted, reinterpret_cast<float*>(places + size), places, count,
                                   groups == nullptr ? nullptr : groups + int64_t{segment} * n, threshold,
                                   static_cast<int>(max_keep < n ? max_keep : n), spread, segment, block, s);
  if (kept < 0) return;
  for (int64_t i = t; i < max_keep; i += kNmsThreads)
    indices[segment * max_keep + i] = i < kept ? places[i] : -1;
  if (t == 0) counts[segment] = kept;
}

}  // namespace
}  // namespace frcnn

extern "C" {

int frcnn_cuda_nms_block(int64_t* boxes) { return frcnn::boxes_in_block(boxes); }

int64_t frcnn_cuda_nms_workspace(int64_t segments, int64_t n) {
  const int64_t bits = frcnn::Spread::bytes(segments, n);
  return bits > 0 ? bits + segments * static_cast<int64_t>(sizeof(unsigned)) : 0;
}

int frcnn_cuda_nms(int64_t type, const void* boxes, const void* scores, const int64_t* groups,
                   int64_t segments, int64_t n, double iou_threshold, int64_t max_keep, bool drop_absent,
                   void* workspace, int64_t* indices, int64_t* counts, cudaStream_t stream) {
  using namespace frcnn;
  if (segments == 0) return cudaSuccess;
  if (type != kFrcnnFloat || n > kFrcnnNmsBlock || segments > INT32_MAX) return cudaErrorInvalidValue;
  Spread spread{nullptr, nullptr, static_cast<int>(div_up<int64_t>(n, kWord)),
                blocks_per_segment(segments, n)};
  if (spread.blocks > 1) {
    const size_t bytes = static_cast<size_t>(segments) * sizeof(unsigned);
    spread.bits = static_cast<unsigned*>(workspace);
    spread.finished = spread.bits + Spread::bytes(segments, n) / 4;
    const cudaError_t error = cudaMemsetAsync(spread.finished, 0, bytes, stream);
    if (error != cudaSuccess) return error;
  }
  const int size = boxes_in_shared(n);
  const size_t bytes = static_cast<size_t>(size) * (sizeof(unsigned long long) + sizeof(Box<float>));
  return launch(nms_block_kernel, dim3(static_cast<unsigned>(segments * spread.blocks)), dim3(kNmsThreads),
                bytes, stream, static_cast<const float*>(boxes), static_cast<const float*>(scores), groups,
                static_cast<int>(n), size, static_cast<float>(iou_threshold), max_keep, drop_absent, spread,
                indices, counts);
}
}
