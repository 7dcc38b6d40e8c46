// NMS of many small segments (image x class, image x level) in one launch: a block per segment sorts up to
// 4096 boxes in shared memory and suppresses them there (nms_suppress.h). Nothing goes through device memory
// but the boxes, the scores and the result; nothing through the host. For more boxes: nms_large.cu.
//
// Bound by the instructions of one block, while most of the GPU is idle: a segment is one multiprocessor's. A
// block sorts 1024 keys in 55 barrier steps and takes 16 steps of 64 candidates, each compared with all boxes
// kept so far and resolved in one warp in about 5 rounds. For the five levels of 1000 boxes of an image
// a modeled 80 us, for ten of 2000 a modeled 229 us (docs/performance.md); the whole GPU would issue as much
// in a modeled 3 and 17 us. Nothing was measured on a GPU.
//
// Keys are (score, index) in one 64-bit integer, so that sorting them breaks ties as promised: lower index
// first, NaN last, -0 equal to 0.
#include "nms_suppress.h"
#include "order_in_block.h"

namespace frcnn {
namespace {

// grid: segments. Dynamic shared memory: boxes [size], then keys [size]; size: n rounded up to a power of
// two. Boxes come first, so that nvcc knows them to lie at multiples of 16 bytes and moves each at once. One
// block at a time on a multiprocessor: for sm_100 the compiler would make room for two, with 32 registers a
// thread, and spill.
__global__ void __launch_bounds__(kNmsThreads, 1)
    nms_block_kernel(const float* __restrict__ boxes, const float* __restrict__ scores,
                     const int64_t* __restrict__ groups, int n, int size, float threshold, int64_t max_keep,
                     bool drop_absent, int64_t* __restrict__ indices, int64_t* __restrict__ counts) {
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(s, NmsShared);
  FRCNN_SHARED(present, int);
  Box<float>* const sorted = reinterpret_cast<Box<float>*>(memory);
  unsigned long long* const keys = reinterpret_cast<unsigned long long*>(sorted + size);
  const int t = static_cast<int>(threadIdx.x);
  const int64_t segment = blockIdx.x;
  const float* const own_boxes = boxes + segment * n * 4;
  const float* const own_scores = scores + segment * n;

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
  const int kept =
      suppress_in_block(sorted, places, count, groups == nullptr ? nullptr : groups + segment * n, threshold,
                        static_cast<int>(max_keep < n ? max_keep : n), s);
  for (int64_t i = t; i < max_keep; i += kNmsThreads)
    indices[segment * max_keep + i] = i < kept ? places[i] : -1;
  if (t == 0) counts[segment] = kept;
}

}  // namespace
}  // namespace frcnn

extern "C" {

int frcnn_cuda_nms_block(int64_t* boxes) { return frcnn::boxes_in_block(boxes); }

int frcnn_cuda_nms(int64_t type, const void* boxes, const void* scores, const int64_t* groups,
                   int64_t segments, int64_t n, double iou_threshold, int64_t max_keep, bool drop_absent,
                   int64_t* indices, int64_t* counts, cudaStream_t stream) {
  using namespace frcnn;
  if (segments == 0) return cudaSuccess;
  if (type != kFrcnnFloat || n > kFrcnnNmsBlock || segments > INT32_MAX) return cudaErrorInvalidValue;
  int size = 1;
  while (size < n) size *= 2;
  const size_t bytes = static_cast<size_t>(size) * (sizeof(unsigned long long) + sizeof(Box<float>));
  return launch(nms_block_kernel, dim3(static_cast<unsigned>(segments)), dim3(kNmsThreads), bytes, stream,
                static_cast<const float*>(boxes), static_cast<const float*>(scores), groups,
                static_cast<int>(n), size, static_cast<float>(iou_threshold), max_keep, drop_absent, indices,
                counts);
}
}
