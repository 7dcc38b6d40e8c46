// A random subset of each image's candidates, in the order of its slots.
#pragma once

#include <vector>

#include "../shuffle.h"
#include "parallel.h"

namespace frcnn {

// assigned(image, i): below 0 may not be sampled, 0 negative, above positive. Calls write(image, slot,
// candidate) for every slot, with candidate -1 where it is unused; counts [B, 2].
template <typename Assigned, typename Write>
void draw_slots(int64_t batch, int64_t n, int64_t slots, int64_t most_positive, uint64_t seed,
                int64_t* counts, const Assigned& assigned, const Write& write) {
  parallel_tasks(batch, [&](int64_t image) {
    std::vector<uint32_t> of_kind[2];
    for (int64_t i = 0; i < n; ++i) {
      const int64_t gt = assigned(image, i);
      if (gt >= 0) of_kind[gt > 0 ? 0 : 1].push_back(static_cast<uint32_t>(i));
    }
    const Draws draws = draws_of(static_cast<int64_t>(of_kind[0].size()),
                                 static_cast<int64_t>(of_kind[1].size()), slots, most_positive, seed, image);
    const int64_t positives = draws.positive.drawn, used = positives + draws.negative.drawn;
    counts[2 * image] = positives;
    counts[2 * image + 1] = draws.negative.drawn;
    for (int64_t s = 0; s < slots; ++s) {
      int64_t candidate = -1;
      if (s < positives) {
        candidate = of_kind[0][draws.positive.rank(static_cast<uint32_t>(s))];
      } else if (s < used) {
        candidate = of_kind[1][draws.negative.rank(static_cast<uint32_t>(s - positives))];
      }
      write(image, s, candidate);
    }
  });
}

}  // namespace frcnn
