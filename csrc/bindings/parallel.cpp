// The kernels' threads are torch's: torch.set_num_threads counts them.
#include "../cpu/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace frcnn {

int64_t thread_count() { return torch::stable::get_num_threads(); }

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, count, grain, body);
}

}  // namespace frcnn
