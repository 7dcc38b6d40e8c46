#include "memory.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "log.h"
#include "properties.h"
#include "queue.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace gpu {
namespace {

struct Block {
  size_t bytes;
  Place place;
  int device;
};

std::map<const char*, Block>& blocks() {
  static auto* all = new std::map<const char*, Block>;
  return *all;
}

// Aligned to 2 MB, as torch's allocator expects of a segment. Pages cost memory only once they are touched.
void* map_pages(size_t bytes) {
  constexpr size_t kAlignment = size_t{2} << 20;
  void* address = mmap(nullptr, bytes + kAlignment, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  const auto start = reinterpret_cast<uintptr_t>(address);
  return reinterpret_cast<void*>((start + kAlignment - 1) / kAlignment * kAlignment);
}

size_t used(int device) {
  size_t bytes = 0;
  for (const auto& [_, block] : blocks())
    if (block.place == Place::kDevice && block.device == device) bytes += block.bytes;
  return bytes;
}

cudaError_t allocate(void** address, size_t bytes, Place place) {
  const Guard guard(lock());
  const bool on_device = place == Place::kDevice;
  if (const cudaError_t error = forbidden_in_capture(on_device ? "cudaMalloc" : "cudaHostAlloc"))
    return error;
  const int device = current_device();
  if (on_device && used(device) + bytes > properties().memory) return cudaErrorMemoryAllocation;
  *address = map_pages(bytes);
  if (*address == nullptr) return cudaErrorMemoryAllocation;
  blocks()[static_cast<const char*>(*address)] = {bytes, place, device};
  log(on_device ? "malloc" : "hostalloc", on_device ? "cudaMalloc" : "cudaHostAlloc", bytes);
  return cudaSuccess;
}

cudaError_t release(void* address, const char* call) {
  if (address == nullptr) return cudaSuccess;
  const Guard guard(lock());
  if (const cudaError_t error = forbidden_in_capture(call)) return error;
  log("sync", call);
  wait_for_all();
  const auto found = blocks().find(static_cast<const char*>(address));
  if (found == blocks().end()) return cudaErrorInvalidValue;
  munmap(address, found->second.bytes);
  blocks().erase(found);
  return cudaSuccess;
}

const char* name_of(Place place) {
  return place == Place::kDevice ? "device" : place == Place::kPinned ? "pinned" : "pageable";
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t handle, bool blocking) {
  const Guard guard(lock());
  Stream* stream = stream_of(handle);
  const Found target = find(to), source = find(from);
  log("memcpy", std::string(name_of(source.place)) + " to " + name_of(target.place), bytes, 0, 0, handle);
  for (const Found& f : {target, source}) {
    if (f.place != Place::kPageable && f.left < bytes) {
      fault("a copy of " + std::to_string(bytes) + " bytes leaves its allocation");
      return cudaErrorInvalidValue;
    }
  }
  const auto move = [=] { std::memmove(to, from, bytes); };
  if (stream->capture && !blocking) {
    if (target.place == Place::kPageable || source.place == Place::kPageable) {
      stream->capture->invalid = true;
      fault("a capture copies from or to pageable memory");
      return cudaErrorStreamCaptureUnsupported;
    }
    enqueue(stream, move);
    return cudaSuccess;
  }
  if (blocking || target.place == Place::kPageable) {
    // the host waits until the bytes are there
    if (const cudaError_t error = forbidden_in_capture("cudaMemcpy")) return error;
    wait_for(stream);
    if (broken() == cudaSuccess) move();
    return broken();
  }
  if (source.place == Place::kPageable) {
    // the driver takes the bytes before it returns
    const std::shared_ptr<char[]> staged(new char[bytes]);
    std::memcpy(staged.get(), from, bytes);
    enqueue(stream, [=] { std::memcpy(to, staged.get(), bytes); });
  } else {
    enqueue(stream, move);
  }
  return cudaSuccess;
}

}  // namespace

Found find(const void* address) {
  const Guard guard(lock());
  const auto* p = static_cast<const char*>(address);
  auto after = blocks().upper_bound(p);
  if (after == blocks().begin()) return {};
  const auto& [start, block] = *--after;
  if (p >= start + block.bytes) return {};
  return {block.place, block.device, static_cast<size_t>(start + block.bytes - p)};
}

}  // namespace gpu

using gpu::Guard;
using gpu::Place;

EXPORT cudaError_t cudaMalloc(void** address, size_t bytes) {
  CALLED;
  return gpu::allocate(address, bytes, Place::kDevice);
}
EXPORT cudaError_t cudaFree(void* address) {
  CALLED;
  return gpu::release(address, "cudaFree");
}
EXPORT cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  CALLED;
  return gpu::allocate(address, bytes, Place::kPinned);
}
EXPORT cudaError_t cudaMallocHost(void** address, size_t bytes) {
  CALLED;
  return gpu::allocate(address, bytes, Place::kPinned);
}
EXPORT cudaError_t cudaFreeHost(void* address) {
  CALLED;
  return gpu::release(address, "cudaFreeHost");
}
EXPORT cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  CALLED;
  const Guard guard(gpu::lock());
  gpu::blocks()[static_cast<const char*>(address)] = {bytes, Place::kPinned, gpu::current_device()};
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostUnregister(void* address) {
  CALLED;
  const Guard guard(gpu::lock());
  gpu::wait_for_all();
  gpu::blocks().erase(static_cast<const char*>(address));
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  CALLED;
  const Guard guard(gpu::lock());
  *total = gpu::properties().memory;
  *free = *total - gpu::used(gpu::current_device());
  return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  CALLED;
  std::memset(attributes, 0, sizeof *attributes);
  const gpu::Found found = gpu::find(address);
  attributes->device = found.device;
  if (found.place == Place::kPageable) {
    attributes->type = cudaMemoryTypeUnregistered;
    return cudaSuccess;
  }
  attributes->type = found.place == Place::kDevice ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
  attributes->devicePointer = const_cast<void*>(address);
  if (found.place == Place::kPinned) attributes->hostPointer = attributes->devicePointer;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t s) {
  CALLED;
  return gpu::copy(to, from, bytes, s, false);
}
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  CALLED;
  return gpu::copy(to, from, bytes, nullptr, true);
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t s) {
  CALLED;
  return gpu::copy(to, from, bytes, s, false);
}
EXPORT cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) {
  CALLED;
  return cudaSuccess;  // constants of ATen's kernels, which do not run
}
EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  CALLED;
  *address = const_cast<void*>(symbol);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t s) {
  CALLED;
  gpu::log("memset", "cudaMemsetAsync", bytes, 0, 0, s);
  if (gpu::find(address).left < bytes) {
    gpu::fault("a memset of " + std::to_string(bytes) + " bytes leaves its allocation");
    return cudaErrorInvalidValue;
  }
  gpu::enqueue(gpu::stream_of(s), [=] { std::memset(address, value, bytes); });
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void* address, int value, size_t bytes) {
  CALLED;
  return cudaMemsetAsync(address, value, bytes, nullptr);
}
