// NCCL between processes of this machine, of which each has an emulated device: the collectives that training
// calls, over shared memory.
//
// A collective is two pieces of a stream's work. The first puts what this rank gives into its slot, the
// second waits until all ranks have done so and computes the result, in the order of the ranks, so that all
// get the same bits. Neither is done before its stream comes to it, and a rank that waits leaves the
// runtime's lock to its other threads, as a GPU that waits would not stop them.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "log.h"
#include "queue.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// As in nccl.h, which a toolkit does not have.
enum Result { kSuccess = 0, kSystemError = 2, kInvalidArgument = 4, kRemoteError = 6 };
enum Type { kInt8, kUint8, kInt32, kUint32, kInt64, kUint64, kFloat16, kFloat32, kFloat64, kBfloat16 };
enum Operation { kSum, kProduct, kMax, kMin, kAverage };
struct UniqueId {
  char internal[128];
};

constexpr int kMostRanks = 8;
constexpr size_t kSlotBytes = size_t{1} << 28;  // takes memory only where it was written
constexpr size_t kSizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

struct Shared {
  std::atomic<int> joined;
  struct {
    std::atomic<int> process;
    std::atomic<uint64_t> given, taken;  // the number of the last collective that it gave to, took from
  } ranks[kMostRanks];
};

struct Comm {
  int rank, count, device;
  Shared* shared;
  char* slots;
  uint64_t collectives = 0;  // that this rank has been asked for
  std::atomic<int> error{kSuccess};

  char* slot(int of) const { return slots + of * kSlotBytes; }

  // Whether all have come to a collective; also where one of them never will, and `error` says so.
  template <typename F>
  bool all(F has_come) {
    for (int r = 0; r < count; ++r) {
      if (error != kSuccess) return true;
      if (has_come(shared->ranks[r])) continue;
      if (kill(shared->ranks[r].process, 0) != 0 && !has_come(shared->ranks[r])) error = kRemoteError;
      return error != kSuccess;
    }
    return true;
  }
};
using Handle = std::shared_ptr<Comm>*;  // never freed: queued work and late calls may have it

template <typename T>
void reduce_into(T* out, const T* with, size_t count, int operation) {
  for (size_t i = 0; i < count; ++i) {
    switch (operation) {
      case kProduct:
        out[i] = out[i] * with[i];
        break;
      case kMax:
        out[i] = std::max(out[i], with[i]);
        break;
      case kMin:
        out[i] = std::min(out[i], with[i]);
        break;
      default:
        out[i] = out[i] + with[i];
    }
  }
}

template <typename T>
void reduce(const Comm& comm, void* out, size_t first, size_t count, int operation) {
  T* result = static_cast<T*>(out);
  const auto given = [&](int rank) { return reinterpret_cast<const T*>(comm.slot(rank)) + first; };
  std::copy_n(given(0), count, result);
  for (int rank = 1; rank < comm.count; ++rank) reduce_into(result, given(rank), count, operation);
  if (operation == kAverage)
    for (size_t i = 0; i < count; ++i) result[i] = result[i] / T(comm.count);
}

// Of what all ranks gave, `count` numbers from the number `first` on; false for a type that is not emulated.
bool reduce(const Comm& comm, void* out, size_t first, size_t count, int type, int operation) {
  const auto as = [&](auto* tag) {
    reduce<std::remove_pointer_t<decltype(tag)>>(comm, out, first, count, operation);
    return true;
  };
  if (type == kUint8) return as(static_cast<uint8_t*>(nullptr));
  if (type == kInt32) return as(static_cast<int32_t*>(nullptr));
  if (type == kInt64) return as(static_cast<int64_t*>(nullptr));
  if (type == kFloat32) return as(static_cast<float*>(nullptr));
  if (type == kFloat64) return as(static_cast<double*>(nullptr));
  return false;
}

// send: `bytes` that this rank gives; take: what it makes of all slots.
int collective(const char* name, void* handle, cudaStream_t on, const void* send, size_t bytes,
               gpu::Action take) {
  const gpu::Guard guard(gpu::lock());
  const std::shared_ptr<Comm> comm = *static_cast<Handle>(handle);
  gpu::Stream* stream = gpu::stream_of(on);
  if (stream->device != comm->device)
    gpu::fault(std::string(name) + " of device " + std::to_string(comm->device) +
               " is given a stream of device " + std::to_string(stream->device));
  if (bytes > kSlotBytes) {
    gpu::fault(std::string(name) + ": more bytes than the emulated NCCL holds");
    return kInvalidArgument;
  }
  gpu::log("nccl", name, bytes, 0, 0, on);
  if (stream->capture) gpu::fault(std::string(name) + " in a capture is not emulated");
  const uint64_t number = ++comm->collectives;
  auto& own = comm->shared->ranks[comm->rank];
  gpu::enqueue_when(
      stream, [=] { return comm->all([=](const auto& rank) { return rank.taken >= number - 1; }); },
      [=, &own] {
        if (comm->error != kSuccess) return;
        if (bytes > 0) std::memcpy(comm->slot(comm->rank), send, bytes);
        own.given = number;
      });
  gpu::enqueue_when(
      stream, [=] { return comm->all([=](const auto& rank) { return rank.given >= number; }); },
      [=, &own] {
        if (comm->error != kSuccess) return;
        take();
        own.taken = number;
      });
  return kSuccess;
}

const Comm& of(void* handle) { return **static_cast<Handle>(handle); }

}  // namespace

// ---- communicators ---------------------------------------------------------------------------------------

EXPORT int ncclGetVersion(int* version) {
  CALLED;
  *version = 23007;
  return kSuccess;
}
EXPORT int ncclGetUniqueId(UniqueId* id) {
  CALLED;
  static std::atomic<int> last{0};
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->internal, sizeof id->internal, "/emulated-nccl-%d-%d", getpid(), ++last);
  return kSuccess;
}
EXPORT int ncclCommInitRankConfig(void** handle, int count, UniqueId id, int rank, void*) {
  CALLED;
  if (count > kMostRanks) {
    gpu::fault("NCCL is emulated for up to " + std::to_string(kMostRanks) + " processes");
    return kInvalidArgument;
  }
  const size_t bytes = sizeof(Shared) + 4096 + count * kSlotBytes;
  const int file = shm_open(id.internal, O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) return kSystemError;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  close(file);
  if (memory == MAP_FAILED) return kSystemError;
  auto comm = std::make_shared<Comm>();
  comm->rank = rank;
  comm->count = count;
  comm->device = gpu::current_device();
  comm->shared = static_cast<Shared*>(memory);
  comm->slots = static_cast<char*>(memory) + (sizeof(Shared) + 4095) / 4096 * 4096;
  comm->shared->ranks[rank].process = getpid();
  ++comm->shared->joined;
  while (comm->shared->joined < count) usleep(200);
  shm_unlink(id.internal);  // by all of them: the memory stays as long as somebody has it
  *handle = new std::shared_ptr<Comm>(comm);
  return kSuccess;
}
EXPORT int ncclCommInitRank(void** handle, int count, UniqueId id, int rank) {
  CALLED;
  return ncclCommInitRankConfig(handle, count, id, rank, nullptr);
}
EXPORT int ncclCommCount(void* handle, int* count) {
  CALLED;
  *count = of(handle).count;
  return kSuccess;
}
EXPORT int ncclCommUserRank(void* handle, int* rank) {
  CALLED;
  *rank = of(handle).rank;
  return kSuccess;
}
EXPORT int ncclCommGetAsyncError(void* handle, int* error) {
  CALLED;
  *error = of(handle).error;
  return kSuccess;
}
// What waits for other ranks ends.
EXPORT int ncclCommAbort(void* handle) {
  CALLED;
  (*static_cast<Handle>(handle))->error = kRemoteError;
  return kSuccess;
}
EXPORT int ncclCommFinalize(void*) {
  CALLED;
  return kSuccess;
}
EXPORT int ncclCommDestroy(void*) {
  CALLED;
  return kSuccess;
}
EXPORT int ncclGroupStart() {
  CALLED;
  return kSuccess;
}
EXPORT int ncclGroupEnd() {
  CALLED;
  return kSuccess;
}
EXPORT int ncclCommRegister(void*, void*, size_t, void** handle) {
  CALLED;
  *handle = nullptr;
  return kSuccess;
}
EXPORT int ncclCommDeregister(void*, void*) {
  CALLED;
  return kSuccess;
}
EXPORT const char* ncclGetErrorString(int) {
  CALLED;
  return "error of the emulated NCCL";
}
EXPORT const char* ncclGetLastError(void*) {
  CALLED;
  return "";
}

// ---- collectives -----------------------------------------------------------------------------------------

EXPORT int ncclAllReduce(const void* send, void* receive, size_t count, int type, int operation, void* handle,
                         cudaStream_t stream) {
  CALLED;
  return collective("ncclAllReduce", handle, stream, send, count * kSizes[type], [=] {
    if (!reduce(of(handle), receive, 0, count, type, operation))
      gpu::fault("ncclAllReduce of numbers of type " + std::to_string(type) + " is not emulated");
  });
}
EXPORT int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, void* handle,
                         cudaStream_t stream) {
  CALLED;
  const size_t bytes = count * kSizes[type];
  return collective("ncclBroadcast", handle, stream, send, of(handle).rank == root ? bytes : 0,
                    [=] { std::memcpy(receive, of(handle).slot(root), bytes); });
}
EXPORT int ncclBcast(void* both, size_t count, int type, int root, void* handle, cudaStream_t stream) {
  CALLED;
  return ncclBroadcast(both, both, count, type, root, handle, stream);
}
EXPORT int ncclAllGather(const void* send, void* receive, size_t count, int type, void* handle,
                         cudaStream_t stream) {
  CALLED;
  const size_t bytes = count * kSizes[type];
  return collective("ncclAllGather", handle, stream, send, bytes, [=] {
    for (int rank = 0; rank < of(handle).count; ++rank)
      std::memcpy(static_cast<char*>(receive) + rank * bytes, of(handle).slot(rank), bytes);
  });
}
EXPORT int ncclReduceScatter(const void* send, void* receive, size_t count, int type, int operation,
                             void* handle, cudaStream_t stream) {
  CALLED;
  return collective("ncclReduceScatter", handle, stream, send, count * of(handle).count * kSizes[type], [=] {
    if (!reduce(of(handle), receive, of(handle).rank * count, count, type, operation))
      gpu::fault("ncclReduceScatter of numbers of type " + std::to_string(type) + " is not emulated");
  });
}
