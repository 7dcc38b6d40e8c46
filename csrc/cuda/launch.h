// How the kernels are launched and where they keep shared memory. The two macros exist because the same
// sources also run on a CPU, thread by thread, under tools/cuda_emulator (which defines its own).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#if !defined(FRCNN_EMULATED)
namespace frcnn {
template <typename T>
struct Identity {
  using type = T;
};
}  // namespace frcnn
// `__shared__ TYPE name`; the type comes last because it may hold commas.
#define FRCNN_SHARED(name, ...) __shared__ typename ::frcnn::Identity<__VA_ARGS__>::type name
#define FRCNN_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace frcnn {

constexpr unsigned kFullWarp = 0xffffffffu;

// Bytes of shared memory that a block of the current GPU can have if it asks for them.
inline cudaError_t most_shared(int* bytes) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Lets a kernel have all the shared memory that a block of this GPU can have, and says whether that is
// enough: without it the static and dynamic bytes may be 48 KB together. Always the same limit, so threads
// may race.
inline cudaError_t allow_shared(const void* kernel, size_t bytes) {
  cudaFuncAttributes attributes{};
  int most = 0;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) error = most_shared(&most);
  if (error != cudaSuccess) return error;
  most -= static_cast<int>(attributes.sharedSizeBytes);
  if (bytes > static_cast<size_t>(most)) return cudaErrorLaunchOutOfResources;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

// Launches without synchronizing; the error is the launch's own, or cudaErrorLaunchOutOfResources where the
// GPU has too little shared memory.
template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Args&&... args) {
  if (shared_bytes > 0) {
    const cudaError_t error = allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

template <typename T>
constexpr T div_up(T a, T b) {
  return (a + b - 1) / b;
}

// The blocks of `threads` that cover n; false if a grid does not hold as many.
inline bool blocks_for(int64_t n, int threads, dim3* blocks) {
  const int64_t count = div_up<int64_t>(n, threads);
  *blocks = dim3(static_cast<unsigned>(count));
  return count <= INT32_MAX;
}

}  // namespace frcnn
