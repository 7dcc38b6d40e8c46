// The GPU that is emulated, by its compute capability (EMULATED_GPU_ARCH, 9.0 unless set).
#pragma once

#include <cstddef>

namespace gpu {

// From the tables "Technical Specifications per Compute Capability" of the CUDA programming guide; the counts
// of multiprocessors are those of T4, A100, RTX 3090, RTX 4090, H100, B200 and RTX 5090.
struct Properties {
  int major, minor, multiprocessors;
  int threads_per_multiprocessor, blocks_per_multiprocessor;
  int shared_per_multiprocessor, shared_per_block_optin;  // bytes
  size_t memory;                                          // bytes

  static constexpr int kSharedPerBlock = 48 << 10, kThreadsPerBlock = 1024, kRegistersPerBlock = 65536;
};
const Properties& properties();

}  // namespace gpu
