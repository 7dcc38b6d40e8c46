#include "properties.h"

#include <cuda_runtime_api.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "log.h"
#include "queue.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace gpu {
namespace {

constexpr int kKilo = 1 << 10;
constexpr size_t kGiga = size_t{1} << 30;
constexpr Properties kKnown[] = {
    {7, 5, 40, 1024, 16, 64 * kKilo, 64 * kKilo, 16 * kGiga},
    {8, 0, 108, 2048, 32, 164 * kKilo, 163 * kKilo, 80 * kGiga},
    {8, 6, 82, 1536, 16, 100 * kKilo, 99 * kKilo, 24 * kGiga},
    {8, 9, 128, 1536, 24, 100 * kKilo, 99 * kKilo, 24 * kGiga},
    {9, 0, 132, 2048, 32, 228 * kKilo, 227 * kKilo, 80 * kGiga},
    {10, 0, 148, 2048, 32, 228 * kKilo, 227 * kKilo, 180 * kGiga},
    {12, 0, 170, 1536, 24, 100 * kKilo, 99 * kKilo, 32 * kGiga},
};

}  // namespace

const Properties& properties() {
  static const Properties& chosen = []() -> const Properties& {
    const char* wanted = std::getenv("EMULATED_GPU_ARCH");
    const std::string arch = wanted != nullptr ? wanted : "9.0";
    for (const Properties& known : kKnown)
      if (arch == std::to_string(known.major) + "." + std::to_string(known.minor)) return known;
    std::fprintf(stderr, "EMULATED_GPU_ARCH=%s: 7.5, 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0 are known\n", wanted);
    std::exit(2);
  }();
  return chosen;
}

}  // namespace gpu

using gpu::Properties;

EXPORT cudaError_t cudaGetDeviceCount(int* count) {
  CALLED;
  *count = gpu::device_count();
  return cudaSuccess;
}
EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  CALLED;
  *version = CUDART_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int* version) {
  CALLED;
  return cudaDriverGetVersion(version);
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  CALLED;
  std::snprintf(id, static_cast<size_t>(length), "0000:%02x:00.0", device);
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  CALLED;
  *can = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  CALLED;
  if (lowest != nullptr) *lowest = 0;
  if (highest != nullptr) *highest = -5;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  CALLED;
  const Properties& p = gpu::properties();
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiprocessors;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = Properties::kThreadsPerBlock;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = p.threads_per_multiprocessor;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = p.blocks_per_multiprocessor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = Properties::kSharedPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = p.shared_per_block_optin;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = p.shared_per_multiprocessor;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
      *value = Properties::kRegistersPerBlock;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    case cudaDevAttrMaxGridDimX:
      *value = INT_MAX;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *value = 65535;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int) {
  CALLED;
  const Properties& p = gpu::properties();
  std::memset(out, 0, sizeof *out);
  std::snprintf(out->name, sizeof out->name, "emulated GPU sm_%d%d", p.major, p.minor);
  out->major = p.major;
  out->minor = p.minor;
  out->multiProcessorCount = p.multiprocessors;
  out->totalGlobalMem = p.memory;
  out->sharedMemPerBlock = Properties::kSharedPerBlock;
  out->sharedMemPerBlockOptin = static_cast<size_t>(p.shared_per_block_optin);
  out->sharedMemPerMultiprocessor = static_cast<size_t>(p.shared_per_multiprocessor);
  out->regsPerBlock = out->regsPerMultiprocessor = Properties::kRegistersPerBlock;
  out->maxThreadsPerBlock = Properties::kThreadsPerBlock;
  out->maxThreadsPerMultiProcessor = p.threads_per_multiprocessor;
  out->maxBlocksPerMultiProcessor = p.blocks_per_multiprocessor;
  out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024;
  out->maxThreadsDim[2] = 64;
  out->maxGridSize[0] = INT_MAX;
  out->maxGridSize[1] = out->maxGridSize[2] = 65535;
  out->warpSize = 32;
  out->memPitch = INT_MAX;
  out->totalConstMem = 64 << 10;
  out->textureAlignment = 512;
  out->l2CacheSize = 50 << 20;
  out->memoryBusWidth = 5120;
  out->canMapHostMemory = out->concurrentKernels = out->unifiedAddressing = out->cooperativeLaunch = 1;
  return cudaSuccess;
}
