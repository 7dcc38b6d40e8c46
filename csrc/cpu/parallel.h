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

// Runs task(i, memory) for every i below count; a free thread takes the next one, since tasks differ in size.
// memory is what make() returned for the thread.
template <typename Make, typename Task>
void parallel_tasks(int64_t count, const Make& make, const Task& task) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(count, thread_count()), 1, [&](int64_t, int64_t) {
    auto memory = make();
    for (int64_t i = next++; i < count; i = next++) task(i, memory);
  });
}
template <typename Task>
void parallel_tasks(int64_t count, const Task& task) {
  parallel_tasks(count, [] { return 0; }, [&](int64_t i, int) { task(i); });
}

}  // namespace frcnn
