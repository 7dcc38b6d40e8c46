// What the kernels use of the CUDA runtime, on the CPU: found before the toolkit's header when csrc/cuda/*.cu
// are compiled as C++20. A kernel runs thread by thread on fibers (emulator.cpp); anything not declared here
// is not emulated, so a kernel that starts to use it fails to compile instead of going unchecked.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#define FRCNN_EMULATED 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// ---- types ------------------------------------------------------------------------------------------------

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchFailure = 719
};
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
  size_t sharedSizeBytes = 0;  // not known to a compiler for the host
};
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

extern const uint3& threadIdx;
extern const uint3& blockIdx;
extern const dim3& blockDim;
extern const dim3& gridDim;

// ---- the emulator -----------------------------------------------------------------------------------------

namespace emulator {

using Location = std::source_location;

constexpr int kMostShared = 99 << 10;  // a block's, on the least of the architectures built for (sm_120)

// Runs one grid. Returns cudaErrorLaunchFailure if anything was reported (see errors() in emulator.cpp).
cudaError_t run(const void* kernel, const cudaLaunchConfig_t& config, const std::function<void()>& thread);
cudaError_t allow_dynamic_shared(const void* kernel, int bytes);
void* shared_memory(const void* tag, size_t bytes, size_t alignment);
void* dynamic_shared_memory();

enum class Barrier { kSync, kOr };
int block_barrier(Barrier kind, int predicate, Location where);
enum class WarpOp { kSync, kBallot, kShuffle, kShuffleXor, kShuffleUp, kShuffleDown, kReduceMax };
uint64_t warp_collective(WarpOp op, unsigned mask, uint64_t value, int argument, Location where);

void fence();
// Called before an atomic on global or shared memory.
void atomic_access(const void* address, size_t bytes);

template <typename T, typename Tag>
T& shared(Tag) {
  static const char tag = 0;
  return *static_cast<T*>(shared_memory(&tag, sizeof(T), alignof(T)));
}

template <typename T>
T shuffle(WarpOp op, unsigned mask, T value, int argument, Location where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(op, mask, bits, argument, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

// Stands for `__shared__ TYPE name`, with the type last because it may hold commas.
#define FRCNN_SHARED(name, ...) \
  std::type_identity_t<__VA_ARGS__>& name = emulator::shared<std::type_identity_t<__VA_ARGS__>>([] {})
#define FRCNN_DYNAMIC_SHARED(name) \
  unsigned char* const name = static_cast<unsigned char*>(emulator::dynamic_shared_memory())

// ---- launches by name, for the emulated device (by_name.cpp) ---------------------------------------------

namespace emulator {

// A kernel with its arguments, copied from the addresses that the CUDA runtime is given.
struct Launch {
  const void* kernel;
  std::function<void()> thread;
  std::vector<const void*> addresses;  // the pointers among the arguments, without those that are null
};
using Prepare = Launch (*)(const void* kernel, void** arguments);
bool register_signature(const char* type, Prepare prepare);

template <typename T>
void add_address(std::vector<const void*>* out, const T& argument) {
  if constexpr (std::is_pointer_v<T>)
    if (argument != nullptr) out->push_back(argument);
}

// Every signature that is launched anywhere is known when the library is loaded.
template <typename... Params>
struct Signature {
  static Launch prepare(const void* kernel, void** arguments) {
    return from(kernel, arguments, std::index_sequence_for<Params...>{});
  }
  template <size_t... I>
  static Launch from(const void* kernel, void** arguments, std::index_sequence<I...>) {
    (void)arguments;
    const std::tuple<Params...> copied(*static_cast<Params*>(arguments[I])...);
    Launch launch{kernel, nullptr, {}};
    (add_address(&launch.addresses, std::get<I>(copied)), ...);
    launch.thread = [kernel, copied] {
      std::apply(reinterpret_cast<void (*)(Params...)>(const_cast<void*>(kernel)), copied);
    };
    return launch;
  }
  static inline const bool registered = register_signature(typeid(void(Params...)).name(), prepare);
};

}  // namespace emulator

// ---- runtime calls ----------------------------------------------------------------------------------------

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  (void)emulator::Signature<Params...>::registered;
  return emulator::run(reinterpret_cast<const void*>(kernel), *config, [&] { kernel(args...); });
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  return emulator::allow_dynamic_shared(kernel, bytes);
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulator::kMostShared;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream);

// ---- device functions -------------------------------------------------------------------------------------

#define FRCNN_HERE emulator::Location where = emulator::Location::current()

inline void __syncthreads(FRCNN_HERE) { emulator::block_barrier(emulator::Barrier::kSync, 0, where); }
inline int __syncthreads_or(int predicate, FRCNN_HERE) {
  return emulator::block_barrier(emulator::Barrier::kOr, predicate, where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, FRCNN_HERE) {
  emulator::warp_collective(emulator::WarpOp::kSync, mask, 0, 0, where);
}
inline void __threadfence() { emulator::fence(); }

inline unsigned __ballot_sync(unsigned mask, int predicate, FRCNN_HERE) {
  return static_cast<unsigned>(
      emulator::warp_collective(emulator::WarpOp::kBallot, mask, predicate != 0, 0, where));
}
inline int __any_sync(unsigned mask, int predicate, FRCNN_HERE) {
  return emulator::warp_collective(emulator::WarpOp::kBallot, mask, predicate != 0, 0, where) != 0;
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, FRCNN_HERE) {
  return static_cast<unsigned>(
      emulator::warp_collective(emulator::WarpOp::kReduceMax, mask, value, 0, where));
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, FRCNN_HERE) {
  (void)width;
  return emulator::shuffle(emulator::WarpOp::kShuffle, mask, value, lane, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, FRCNN_HERE) {
  (void)width;
  return emulator::shuffle(emulator::WarpOp::kShuffleXor, mask, value, lane_mask, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FRCNN_HERE) {
  (void)width;
  return emulator::shuffle(emulator::WarpOp::kShuffleUp, mask, value, static_cast<int>(delta), where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FRCNN_HERE) {
  (void)width;
  return emulator::shuffle(emulator::WarpOp::kShuffleDown, mask, value, static_cast<int>(delta), where);
}

// Inlined, so that the access is found in the kernel's line.
#define FRCNN_INLINE [[gnu::always_inline]] inline
template <typename T>
FRCNN_INLINE T atomicAdd(T* address, T value) {
  emulator::atomic_access(address, sizeof(T));
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <typename T>
FRCNN_INLINE T atomicMax(T* address, T value) {
  emulator::atomic_access(address, sizeof(T));
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  if (value > old) __atomic_store_n(address, value, __ATOMIC_RELAXED);
  return old;
}
template <typename T>
FRCNN_INLINE T atomicMin(T* address, T value) {
  emulator::atomic_access(address, sizeof(T));
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  if (value < old) __atomic_store_n(address, value, __ATOMIC_RELAXED);
  return old;
}
template <typename T>
FRCNN_INLINE T atomicOr(T* address, T value) {
  emulator::atomic_access(address, sizeof(T));
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
#undef FRCNN_INLINE

#undef FRCNN_HERE

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
template <typename To, typename From>
To frcnn_bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof(To));
  return to;
}
inline int __float_as_int(float v) { return frcnn_bit_cast<int>(v); }
inline unsigned __float_as_uint(float v) { return frcnn_bit_cast<unsigned>(v); }
inline long long __double_as_longlong(double v) { return frcnn_bit_cast<long long>(v); }
inline float __int_as_float(int v) { return frcnn_bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return frcnn_bit_cast<float>(v); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
void __stwb(T* p, T v) {
  *p = v;
}
using std::fma;
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
