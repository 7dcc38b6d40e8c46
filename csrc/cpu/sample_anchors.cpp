// A random subset of each image's assigned anchors.
#include "../kernel_api.h"
#include "draw_slots.h"

int64_t frcnn_cpu_sample_anchors_workspace(int64_t, int64_t) { return 0; }

void frcnn_cpu_sample_anchors(const int64_t* gt_index, const int64_t* seed, int64_t batch, int64_t n,
                              int64_t slots, int64_t most_positive, void*, int64_t* index, int64_t* counts) {
  using namespace frcnn;
  draw_slots(
      batch, n, slots, most_positive, static_cast<uint64_t>(*seed), counts,
      [&](int64_t image, int64_t i) { return gt_index[image * n + i]; },
      [&](int64_t image, int64_t slot, int64_t candidate) { index[image * slots + slot] = candidate; });
}
