// A random subset of each image's assigned anchors (draw_slots.h).
#include "../kernel_api.h"
#include "draw_slots.h"

namespace frcnn {
namespace {

struct Assigned {
  const int64_t* gt_index;
  int64_t n;
  __device__ __forceinline__ int64_t operator()(int64_t image, int64_t i) const {
    return gt_index[image * n + i];
  }
};
struct Write {
  int64_t* index;
  int64_t slots;
  __device__ __forceinline__ void operator()(int64_t image, int64_t slot, int64_t candidate) const {
    index[image * slots + slot] = candidate;
  }
};

}  // namespace
}  // namespace frcnn

extern "C" {

int64_t frcnn_cuda_sample_anchors_workspace(int64_t batch, int64_t n) {
  return frcnn::draw_workspace(batch, n);
}

int frcnn_cuda_sample_anchors(const int64_t* gt_index, const int64_t* seed, int64_t batch, int64_t n,
                              int64_t slots, int64_t most_positive, void* workspace, int64_t* index,
                              int64_t* counts, cudaStream_t stream) {
  using namespace frcnn;
  return draw_slots(Assigned{gt_index, n}, Write{index, slots}, batch, n, slots, most_positive, seed,
                    workspace, counts, stream);
}
}
