// Stores to device memory that other blocks do not see yet.
//
// On a GPU a store is seen by other blocks some time after it was done, and two stores of a thread in any
// order, unless a fence is between them. So each block has a buffer of stores: memory shows them while the
// block runs, and what lay there before while another does. A store leaves the buffer, and is seen by all, at
// a fence that covers it, when its own block does an atomic on it, or at a random moment, at the latest when
// the launch ends. The threads of one block see each other's stores at once: what is missing between those
// the checker says.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator::stores {

// Memory shows what the block in this slot sees from now on; -1: what all see.
void show(int slot);
// To be called before a store by the block that is shown.
void add(void* address, size_t bytes, uint32_t segment);
// What the block stored there leaves the buffer.
void settle(const void* address, size_t bytes);
// What happens before this segment leaves the buffer.
void fence(uint32_t segment);
// The block's stores stay unseen after its end.
void end_block(int slot);
void end_launch();

}  // namespace emulator::stores
