// Work over threads, for kernels that know nothing of torch; whose threads they are, bindings/parallel.cpp
// says.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

namespace frcnn {

int64_t thread_count();

// Runs body(begin, end) on parts of [0, count) of at least `grain` each.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body);

// Runs task(i) for every i below count; a free thread takes the next one, since tasks differ in size.
template <typename F>
void parallel_tasks(int64_t count, const F& task) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(count, thread_count()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

}  // namespace frcnn
