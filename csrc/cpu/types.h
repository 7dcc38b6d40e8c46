// Number types on the CPU. What is computed from half and bfloat16 is float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "../box.h"
#include "../kernel_api.h"

namespace frcnn {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }
// The exponent has another bias, 112 less, which a product mends, subnormal numbers included. What comes out
// beyond half's range was infinite or NaN.
inline float widen(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const float size = float_of((value.bits & 0x7fffu) << 13) * 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &size, sizeof(bits));
  return float_of(bits | (size >= 65536.0f ? 0x7f800000u : 0u) | sign);
}

inline void narrow(float value, float& out) { out = value; }
inline void narrow(double value, double& out) { out = value; }
// To the nearest, ties to even; a NaN stays one.
inline void narrow(float value, BFloat16& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  out.bits = static_cast<uint16_t>(value != value ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline void narrow(float value, Half& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) {
    out.bits = 0x7e00u;
  } else if (size >= 0x477ff000u) {  // rounds beyond the largest
    out.bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (size < 0x38800000u) {  // subnormal: a sum aligns the bits and rounds them
    const float aligned = float_of(size) + 0.5f;
    uint32_t sum;
    std::memcpy(&sum, &aligned, sizeof(sum));
    out.bits = static_cast<uint16_t>(sign | (sum - 0x3f000000u));
  } else {
    const uint32_t rebiased = size - 0x38000000u;
    out.bits = static_cast<uint16_t>(sign | (rebiased + 0xfffu + (rebiased >> 13 & 1u)) >> 13);
  }
}

// Calls f with a value of the type that `type` names.
template <typename F>
void for_box_type(int64_t type, const F& f) {
  type == kFrcnnDouble ? f(double{}) : f(float{});
}
template <typename F>
void for_half_or_float(int64_t type, const F& f) {
  type == kFrcnnHalf ? f(Half{}) : type == kFrcnnBfloat16 ? f(BFloat16{}) : f(float{});
}
template <typename F>
void for_any_type(int64_t type, const F& f) {
  type == kFrcnnDouble ? f(double{}) : for_half_or_float(type, f);
}
// What a type is computed in.
template <typename T>
using Compute = decltype(widen(T{}));

template <typename T>
Delta<T> load_delta(const T* p) {
  return {p[0], p[1], p[2], p[3]};
}
template <typename T>
void store_delta(T* p, const Delta<T>& d) {
  p[0] = d.dx, p[1] = d.dy, p[2] = d.dw, p[3] = d.dh;
}
template <typename T>
Delta<T> stds_of(const double* stds) {
  return {static_cast<T>(stds[0]), static_cast<T>(stds[1]), static_cast<T>(stds[2]), static_cast<T>(stds[3])};
}

}  // namespace frcnn
