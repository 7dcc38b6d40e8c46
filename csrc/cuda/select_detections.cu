// The best detections of each image from its class probabilities, in two launches. A block per image and
// class takes what passes the threshold, sorts it, decodes it and suppresses (nms_suppress.h); then a block
// per image finds the best of what the classes kept. Boxes that do not pass are never decoded, and a block's
// work follows the number that do.
//
// Bound by latency: 1000 proposals x 81 classes are 0.3 MB of probabilities, of which a class reads one
// number per row, a sector each: 2.6 MB, a modeled 1 us at 3.35 TB/s. What follows is a few hundred boxes, a
// modeled 3 and 6 us in the longest block (docs/performance.md). Nothing was measured on a GPU.
#include "../selection.h"
#include "nms_suppress.h"
#include "order_in_block.h"

namespace frcnn {
namespace {

// What a class of an image keeps, best first; workspace.
struct Kept {
  Key* keys;    // [B, C, most]
  int* counts;  // [B, C]
  int most;
};

// Ascends from the best detection to the worst: by score, then by proposal, then by class.
__device__ __forceinline__ Key key_of(float score, int64_t row, int64_t label, int64_t classes) {
  return static_cast<Key>(score_key(score)) << 32 | static_cast<unsigned>(row * classes + label);
}
__device__ __forceinline__ unsigned place_of(Key key) { return static_cast<unsigned>(key & 0xffffffffu); }

// grid: (classes, images). Dynamic shared memory: keys [size], boxes [size]; size: proposals rounded up to a
// power of two.
__global__ void __launch_bounds__(kNmsThreads, 1)
    select_class_kernel(const __grid_constant__ FrcnnSelection s, Delta<float> stds, int size, Kept kept) {
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(suppression, NmsShared);
  FRCNN_SHARED(wanted, int);
  Key* const keys = reinterpret_cast<Key*>(memory);
  Box<float>* const boxes = reinterpret_cast<Box<float>*>(keys + size);
  const int t = static_cast<int>(threadIdx.x);
  const int64_t label = blockIdx.x, image = blockIdx.y;
  const int rows = static_cast<int>(s.proposals_per_image);
  const unsigned classes = static_cast<unsigned>(s.classes);
  const float threshold = static_cast<float>(s.score_threshold);

  if (t == 0) wanted = 0;
  __syncthreads();
  for (int row = t; row < rows; row += kNmsThreads) {
    const int64_t i = image * rows + row;
    const float score = s.probabilities[i * (s.classes + 1) + label];
    if (score > threshold && s.present[i])
      keys[atomicAdd(&wanted, 1)] =
          key_of(score, row, label, s.classes);  // in any order: they are sorted next
  }
  __syncthreads();
  const int count = wanted;
  int sorted = 1;
  while (sorted < count) sorted *= 2;
  for (int i = count + t; i < sorted; i += kNmsThreads) keys[i] = kLastKey;
  __syncthreads();
  sort_in_block<kNmsThreads>(keys, sorted);

  int* const places = places_of_keys<kNmsThreads>(keys, count, [&](int i, Key key) {
    const int64_t row = place_of(key) / classes;
    store_box(&boxes[i].x1, detected_box(s, stds, image, row, label));
    return static_cast<int>(row);
  });
  const int found = suppress_in_block<float>(boxes, places, count, nullptr,
                                             static_cast<float>(s.iou_threshold), kept.most, suppression);
  const int64_t segment = image * s.classes + label;
  for (int i = t; i < found; i += kNmsThreads) {
    const int64_t row = places[i];
    const float score = s.probabilities[(image * rows + row) * (s.classes + 1) + label];
    kept.keys[segment * kept.most + i] = key_of(score, row, label, s.classes);
  }
  if (t == 0) kept.counts[segment] = found;
}

// grid: images. Dynamic shared memory: keys [size]; size: max_detections rounded up to a power of two.
__global__ void __launch_bounds__(kNmsThreads, 1)
    select_image_kernel(const __grid_constant__ FrcnnSelection s, Delta<float> stds, int size, Kept kept,
                        float* __restrict__ boxes, float* __restrict__ scores, int64_t* __restrict__ labels,
                        int64_t* __restrict__ rows, int64_t* __restrict__ counts) {
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(order, OrderShared);
  Key* const keys = reinterpret_cast<Key*>(memory);
  const int t = static_cast<int>(threadIdx.x);
  const int64_t image = blockIdx.x;
  const unsigned classes = static_cast<unsigned>(s.classes);
  const int most = static_cast<int>(s.max_detections);
  const KeyLists lists{kept.keys + image * s.classes * kept.most, kept.counts + image * s.classes, s.classes,
                       static_cast<unsigned>(kept.most)};
  const int count = lowest_of_lists<kNmsThreads>(lists, most, size, keys, order);

  for (int i = t; i < most; i += kNmsThreads) {
    const int64_t out = image * most + i;
    const bool used = i < count;
    const int64_t row = used ? int64_t{place_of(keys[i]) / classes} : -1;
    const int64_t label = used ? int64_t{place_of(keys[i]) % classes} : -1;
    store_box(boxes + out * 4, used ? detected_box(s, stds, image, row, label) : Box<float>{0, 0, 0, 0});
    scores[out] = used ? score_of(static_cast<unsigned>(keys[i] >> 32)) : 0.0f;
    labels[out] = label;
    rows[out] = row;
  }
  if (t == 0) counts[image] = count;
}

int64_t most_of(const FrcnnSelection& s) {
  return s.max_detections < s.proposals_per_image ? s.max_detections : s.proposals_per_image;
}

}  // namespace
}  // namespace frcnn

extern "C" {

int64_t frcnn_cuda_select_detections_workspace(const FrcnnSelection* s) {
  const int64_t segments = s->images * s->classes;
  return segments * (frcnn::most_of(*s) * static_cast<int64_t>(sizeof(frcnn::Key)) + 4);
}

int frcnn_cuda_select_detections(const FrcnnSelection* s, void* workspace, float* boxes, float* scores,
                                 int64_t* labels, int64_t* rows, int64_t* counts, cudaStream_t stream) {
  using namespace frcnn;
  if (s->images == 0) return cudaSuccess;
  if (s->proposals_per_image > kFrcnnNmsBlock || s->max_detections > kFrcnnNmsBlock || s->images > 65535 ||
      s->classes > INT32_MAX || s->proposals_per_image * s->classes > INT32_MAX)
    return cudaErrorInvalidValue;
  const auto stds = stds_of<float>(s->stds);
  const int64_t most = most_of(*s), segments = s->images * s->classes;
  Key* const keys = static_cast<Key*>(workspace);
  const Kept kept{keys, reinterpret_cast<int*>(keys + segments * most), static_cast<int>(most)};
  if (segments > 0) {
    const int size = power_of_two(s->proposals_per_image);
    const dim3 blocks(static_cast<unsigned>(s->classes), static_cast<unsigned>(s->images));
    const size_t bytes = static_cast<size_t>(size) * (sizeof(Key) + sizeof(Box<float>));
    const cudaError_t error =
        launch(select_class_kernel, blocks, dim3(kNmsThreads), bytes, stream, *s, stds, size, kept);
    if (error != cudaSuccess) return error;
  }
  const int size = power_of_two(s->max_detections);
  return launch(select_image_kernel, dim3(static_cast<unsigned>(s->images)), dim3(kNmsThreads),
                static_cast<size_t>(size) * sizeof(Key), stream, *s, stds, size, kept, boxes, scores, labels,
                rows, counts);
}
}
