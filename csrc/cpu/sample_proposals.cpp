// A random subset of each image's gts and proposals, and what each of it is to learn.
#include "../candidates.h"
#include "draw_slots.h"

int64_t frcnn_cpu_sample_proposals_workspace(const FrcnnCandidates*) { return 0; }

void frcnn_cpu_sample_proposals(const FrcnnCandidates* candidates, const int64_t* seed, int64_t slots,
                                int64_t most_positive, void*, float* rois, int64_t* labels, float* targets,
                                int64_t* counts) {
  using namespace frcnn;
  const FrcnnCandidates& c = *candidates;
  draw_slots(
      c.batch, c.g + c.p, slots, most_positive, static_cast<uint64_t>(*seed), counts,
      [&](int64_t image, int64_t i) { return assigned_to(c, image, i); },
      [&](int64_t image, int64_t slot, int64_t candidate) {
        write_slot(c, image, image * slots + slot, candidate, rois, labels, targets);
      });
}
