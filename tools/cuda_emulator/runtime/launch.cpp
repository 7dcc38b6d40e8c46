// Launches: what may be launched is checked, and this project's kernels run, by the emulator's build of them.
//
// EMULATED_GPU_KERNELS names that build, a shared library, and EMULATED_GPU_RESOURCES what ptxas said of each
// kernel: lines of mangled name, registers, static shared memory in bytes. Other kernels, ATen's, are counted
// only: aten.cpp computes their operators.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "log.h"
#include "memory.h"
#include "properties.h"
#include "queue.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace gpu {
namespace {

struct Resources {
  int registers = 0, shared = -1;  // static shared memory in bytes; -1: not known
};

struct Kernel {
  std::string name;  // mangled
  Resources resources;
  int allowed_dynamic = -1;  // by cudaFuncSetAttribute; -1: never set
};

// The kernels of the emulator's build, by the name that nvcc gives them.
struct Emulator {
  // A launch with its arguments copied, or null where the build has no such kernel.
  void* (*prepare)(const char* mangled, void** arguments) = nullptr;
  // The addresses among the arguments, as many as returned.
  size_t (*addresses)(const void* launch, const void** out, size_t most) = nullptr;
  // What was wrong, or null.
  const char* (*run)(const void* launch, const unsigned* grid, const unsigned* block,
                     size_t dynamic) = nullptr;
  void (*discard)(void* launch) = nullptr;
};

// What cudaGetLastError returns, once, besides a broken device's error, which stays.
thread_local cudaError_t last_error = cudaSuccess;

std::unordered_map<const void*, Kernel>& kernels() {
  static auto* all = new std::unordered_map<const void*, Kernel>;
  return *all;
}

const std::map<std::string, Resources>& resources() {
  static const auto* all = [] {
    auto* read = new std::map<std::string, Resources>;
    const char* path = std::getenv("EMULATED_GPU_RESOURCES");
    std::ifstream file(path != nullptr ? path : "");
    std::string name;
    for (Resources r; file >> name >> r.registers >> r.shared;) (*read)[name] = r;
    return read;
  }();
  return *all;
}

const Emulator& emulator() {
  static const Emulator loaded = [] {
    Emulator e;
    const char* path = std::getenv("EMULATED_GPU_KERNELS");
    if (path == nullptr) return e;
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(2);
    }
    e.prepare = reinterpret_cast<decltype(e.prepare)>(dlsym(library, "emulator_prepare"));
    e.addresses = reinterpret_cast<decltype(e.addresses)>(dlsym(library, "emulator_addresses"));
    e.run = reinterpret_cast<decltype(e.run)>(dlsym(library, "emulator_run"));
    e.discard = reinterpret_cast<decltype(e.discard)>(dlsym(library, "emulator_discard"));
    return e;
  }();
  return loaded;
}

// For how many threads a block's registers are enough. They are given out by the warp, in units of 256, and
// each of a multiprocessor's four parts has a quarter of them.
size_t most_threads(int registers) {
  if (registers == 0) return Properties::kThreadsPerBlock;
  const size_t each = (size_t(registers) * 32 + 255) / 256 * 256;
  const size_t warps = 4 * (Properties::kRegistersPerBlock / 4 / each);
  return std::min<size_t>(warps * 32, Properties::kThreadsPerBlock);
}

// A GPU's own checks, in the order of the CUDA programming guide's limits.
cudaError_t check(const Kernel& kernel, dim3 grid, dim3 block, size_t dynamic) {
  const auto refuse = [&](const std::string& what, cudaError_t error) {
    fault("cannot launch " + kernel.name + ": " + what);
    return error;
  };
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > Properties::kThreadsPerBlock || block.z > 64)
    return refuse(std::to_string(threads) + " threads a block", cudaErrorInvalidConfiguration);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
    return refuse("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                      std::to_string(grid.z),
                  cudaErrorInvalidConfiguration);
  if (kernel.resources.shared < 0) return cudaSuccess;
  const size_t fixed = static_cast<size_t>(kernel.resources.shared), all = fixed + dynamic;
  const size_t allowed = kernel.allowed_dynamic < 0
                             ? Properties::kSharedPerBlock
                             : std::max<size_t>(Properties::kSharedPerBlock, fixed + kernel.allowed_dynamic);
  if (all > allowed || all > static_cast<size_t>(properties().shared_per_block_optin))
    return refuse(std::to_string(fixed) + " + " + std::to_string(dynamic) + " bytes of shared memory, of " +
                      std::to_string(allowed) + " allowed",
                  cudaErrorInvalidValue);
  if (threads > most_threads(kernel.resources.registers))
    return refuse(std::to_string(threads) + " threads of " + std::to_string(kernel.resources.registers) +
                      " registers, which are enough for " +
                      std::to_string(most_threads(kernel.resources.registers)),
                  cudaErrorLaunchOutOfResources);
  return cudaSuccess;
}

cudaError_t try_launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t dynamic,
                       cudaStream_t handle) {
  const Guard guard(lock());
  Kernel& kernel = kernels()[function];
  log("launch", kernel.name, dynamic, size_t{grid.x} * grid.y * grid.z, size_t{block.x} * block.y * block.z,
      handle);
  if (broken() != cudaSuccess) return broken();
  if (const cudaError_t error = check(kernel, grid, block, dynamic)) return error;
  Stream* stream = stream_of(handle);
  if (stream->device != current_device()) {
    fault("a kernel is launched on a stream of another device: " + kernel.name);
    return cudaErrorInvalidResourceHandle;
  }
  if (emulator().prepare == nullptr) return cudaSuccess;
  const std::shared_ptr<void> prepared(emulator().prepare(kernel.name.c_str(), arguments), [](void* p) {
    if (p != nullptr) emulator().discard(p);
  });
  if (!prepared) {
    if (kernel.resources.shared >= 0) fault("the emulator's build has no kernel " + kernel.name);
    if (!in_operator()) fault("nobody computes what is launched: " + kernel.name);
    return cudaSuccess;
  }
  const void* addresses[64];
  const size_t count = emulator().addresses(prepared.get(), addresses, 64);
  for (size_t i = 0; i < count; ++i) {
    const Found found = find(addresses[i]);
    if (found.place == Place::kDevice && found.device == stream->device) continue;
    fault(kernel.name + " is given an address that is not in its device's memory");
    return cudaErrorIllegalAddress;
  }
  enqueue(stream, [=, name = kernel.name] {
    const unsigned g[] = {grid.x, grid.y, grid.z}, b[] = {block.x, block.y, block.z};
    const char* wrong = emulator().run(prepared.get(), g, b, dynamic);
    if (wrong == nullptr) return;
    fault(name + ": " + wrong);
    break_device(cudaErrorLaunchFailure);
  });
  return cudaSuccess;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t dynamic,
                   cudaStream_t stream) {
  const cudaError_t error = try_launch(function, grid, block, arguments, dynamic, stream);
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t limit(const void* function, cudaFuncAttribute attribute, int value) {
  const Guard guard(lock());
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  Kernel& kernel = kernels()[function];
  log("limit", kernel.name, static_cast<size_t>(value));
  const int fixed = std::max(kernel.resources.shared, 0);
  if (value < 0 || value + fixed > properties().shared_per_block_optin) return cudaErrorInvalidValue;
  kernel.allowed_dynamic = value;
  return cudaSuccess;
}

}  // namespace
}  // namespace gpu

using gpu::Guard;

// ---- what nvcc's host code calls -------------------------------------------------------------------------

EXPORT void** __cudaRegisterFatBinary(void*) {
  CALLED;
  return static_cast<void**>(std::calloc(2, sizeof(void*)));
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) { CALLED; }
EXPORT void __cudaUnregisterFatBinary(void**) { CALLED; }
EXPORT char __cudaInitModule(void**) {
  CALLED;
  return 1;
}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) { CALLED; }
EXPORT void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*,
                                   dim3*, dim3*, int*) {
  CALLED;
  const Guard guard(gpu::lock());
  const auto found = gpu::resources().find(name);
  gpu::kernels()[function] = {name, found == gpu::resources().end() ? gpu::Resources{} : found->second, -1};
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  CALLED;
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

namespace {
struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
thread_local std::vector<Configuration> configurations;
}  // namespace

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                            struct CUstream_st* stream) {
  CALLED;
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  CALLED;
  if (configurations.empty()) return cudaErrorUnknown;
  const Configuration last = configurations.back();
  configurations.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared = last.shared;
  *static_cast<void**>(stream) = last.stream;
  return cudaSuccess;
}

// ---- launches --------------------------------------------------------------------------------------------

EXPORT cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                    size_t shared, cudaStream_t stream) {
  CALLED;
  return gpu::launch(function, grid, block, arguments, shared, stream);
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                      size_t shared, cudaStream_t stream) {
  CALLED;
  return gpu::launch(kernel, grid, block, arguments, shared, stream);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                       void** arguments) {
  CALLED;
  return gpu::launch(function, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes,
                     config->stream);
}
EXPORT cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  CALLED;
  return gpu::limit(function, attribute, value);
}
EXPORT cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, cudaFuncAttribute attribute,
                                                   int value, int) {
  CALLED;
  return gpu::limit(kernel, attribute, value);
}
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void* function) {
  CALLED;
  const Guard guard(gpu::lock());
  const gpu::Resources& r = gpu::kernels()[function].resources;
  *out = {};
  out->maxThreadsPerBlock = static_cast<int>(gpu::most_threads(r.registers));
  out->numRegs = r.registers > 0 ? r.registers : 32;
  out->sharedSizeBytes = static_cast<size_t>(std::max(r.shared, 0));
  out->maxDynamicSharedSizeBytes = gpu::Properties::kSharedPerBlock;
  const int capability = gpu::properties().major * 10 + gpu::properties().minor;
  out->ptxVersion = out->binaryVersion = capability == 89 ? 86 : capability;  // torch is compiled for 8.6
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*,
                                                                          int threads, size_t, unsigned) {
  CALLED;
  *blocks = std::max(1, gpu::properties().threads_per_multiprocessor / std::max(threads, 1));
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                                 int threads, size_t shared) {
  CALLED;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
EXPORT cudaError_t cudaPeekAtLastError() {
  CALLED;
  return gpu::broken() != cudaSuccess ? gpu::broken() : gpu::last_error;
}
EXPORT cudaError_t cudaGetLastError() {
  CALLED;
  const cudaError_t error = cudaPeekAtLastError();
  gpu::last_error = cudaSuccess;
  return error;
}
