// A random subset of each image's gts and proposals, and what each of it is to learn (draw_slots.h).
#include "../candidates.h"
#include "draw_slots.h"

namespace frcnn {
namespace {

struct AssignedCandidate {
  FrcnnCandidates candidates;
  __device__ __forceinline__ int64_t operator()(int64_t image, int64_t i) const {
    return assigned_to(candidates, image, i);
  }
};
struct WriteSample {
  FrcnnCandidates candidates;
  int64_t slots;
  float* rois;
  int64_t* labels;
  float* targets;
  __device__ __forceinline__ void operator()(int64_t image, int64_t slot, int64_t candidate) const {
    write_slot(candidates, image, image * slots + slot, candidate, rois, labels, targets);
  }
};

}  // namespace
}  // namespace frcnn

extern "C" {

int64_t frcnn_cuda_sample_proposals_workspace(const FrcnnCandidates* c) {
  return frcnn::draw_workspace(c->batch, c->g + c->p);
}

int frcnn_cuda_sample_proposals(const FrcnnCandidates* candidates, const int64_t* seed, int64_t slots,
                                int64_t most_positive, void* workspace, float* rois, int64_t* labels,
                                float* targets, int64_t* counts, cudaStream_t stream) {
  using namespace frcnn;
  const FrcnnCandidates& c = *candidates;
  return draw_slots(AssignedCandidate{c}, WriteSample{c, slots, rois, labels, targets}, c.batch, c.g + c.p,
                    slots, most_positive, seed, workspace, counts, stream);
}
}
