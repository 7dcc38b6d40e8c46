// What happens before what on the emulated GPU.
//
// A segment is what one thread does between two barriers or fences. Within a block, segments are ordered by
// program order, __syncthreads and __syncwarp. Between blocks it takes, as on a GPU, all of
//   a fence by a thread, which covers what happens before that fence and nothing later,
//   an atomic, by that thread or after a barrier by another of its block,
//   a later atomic on the same address in the other block,
//   and a fence there, by that thread or after a barrier by another; what follows that fence is ordered.
// (Either fence may be another thread's than the atomic's because __threadfence is sequentially consistent.)
// All that a block has learned so goes on with its own fences and atomics to others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator::order {

// Segments are numbered from kFirst on, in the order in which they begin.
constexpr uint32_t kFirst = 3;

// Who, of those that a segment stands for: the thread itself, or others of its warp, its block or the grid.
enum Scope : uint32_t { kThread = 0, kWarp = 1, kBlock = 2, kGrid = 3 };

void start_launch();
void forget();  // all segments; nothing may remember one
void start_block(int slot, int64_t block, int threads);
void enter_thread(int slot, int thread);
void pass_block_barrier();
void pass_warp_barrier(int warp);
// Begins a segment and returns it: what is `before` it is what the fence covers.
uint32_t fence();
void atomic(const void* address);

// The running thread's segment.
uint32_t current();
// Whether a segment of this launch with this scope happens before what the running thread does now.
bool ordered(uint32_t earlier, Scope scope);
// Whether it happens before the beginning of another segment of the same block.
bool before(uint32_t earlier, Scope scope, uint32_t later);
bool of_this_launch(uint32_t segment);
// The scope that holds both segments.
Scope joined(uint32_t a, uint32_t b);
std::string describe(uint32_t segment);

}  // namespace emulator::order
