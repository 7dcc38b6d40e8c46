// Contexts with stacks of their own that take turns on one CPU thread. They are numbered; kScheduler is the
// context that everything starts from and ends in.
#pragma once

namespace emulator::fibers {

constexpr int kScheduler = -1;

// Address space for the stacks of fibers 0 to count - 1; memory is taken when a stack is used.
void prepare(int count);
// The fiber calls `body`, which must not return, when it is first switched to. One that was left when it was
// done may go on from there instead, so what a body does is a loop.
void start(int fiber, void (*body)());
// Leaves the context `from` for `to`. One that is done is never switched to again, unless it is started anew.
void switch_to(int from, int to, bool done);
// To be called first in a body.
void arrive();

}  // namespace emulator::fibers
