// Number types on the device: what a type is computed in, and loads and stores of 16 bytes, boxes among them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "../box.h"
#include "../kernel_api.h"
#include "launch.h"

namespace frcnn {

// float64 is computed in float64, everything else in float32.
template <typename T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <typename T>
using compute_t = typename Compute<T>::type;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T narrow(compute_t<T> v);
template <>
__device__ __forceinline__ float narrow<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ double narrow<double>(double v) {
  return v;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// N neighboring values that move as one load or store: one, or 16 bytes.
template <typename T, int N>
struct __align__(sizeof(T) * N) Pack {
  static_assert(N == 1 || sizeof(T) * N == 16);
  T v[N];
};
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  Pack<T, N> pack;
  if constexpr (N == 1) {
    pack.v[0] = *p;
  } else {
    const uint4 word = *reinterpret_cast<const uint4*>(p);
    memcpy(&pack, &word, sizeof(word));
  }
  return pack;
}
template <typename T, int N>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack) {
  if constexpr (N == 1) {
    *p = pack.v[0];
  } else {
    uint4 word;
    memcpy(&word, &pack, sizeof(word));
    // A store as any other (write-back is the default): nvcc splits some plain ones of 16 bytes, never this.
    __stwb(reinterpret_cast<uint4*>(p), word);
  }
}

FRCNN_HD bool aligned_to_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Calls f with a null pointer to the type that `type` names.
template <typename F>
cudaError_t for_box_type(int64_t type, F&& f) {
  if (type == kFrcnnFloat) return f(static_cast<float*>(nullptr));
  if (type == kFrcnnDouble) return f(static_cast<double*>(nullptr));
  return cudaErrorInvalidValue;
}
template <typename F>
cudaError_t for_half_or_float(int64_t type, F&& f) {
  if (type == kFrcnnHalf) return f(static_cast<__half*>(nullptr));
  if (type == kFrcnnBfloat16) return f(static_cast<__nv_bfloat16*>(nullptr));
  if (type == kFrcnnFloat) return f(static_cast<float*>(nullptr));
  return cudaErrorInvalidValue;
}
template <typename F>
cudaError_t for_feature_type(int64_t type, F&& f) {
  return type == kFrcnnDouble ? f(static_cast<double*>(nullptr)) : for_half_or_float(type, f);
}

}  // namespace frcnn
