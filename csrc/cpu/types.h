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

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }
// The exponent has another bias, 112 less, which a product mends, subnormal numbers included. What comes out
// beyond half's range was infinite or NaN.
inline float widen(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const float size = float_of((value.bits & 0x7fffu) << 13) * 0x1p112f;
  return float_of(bits_of(size) | (size >= 65536.0f ? 0x7f800000u : 0u) | sign);
}

// What a type is computed in.
template <typename T>
using Compute = decltype(widen(T{}));

// Rounded to nearest, ties to even.
template <typename T>
T narrow(Compute<T> value);
template <>
inline double narrow<double>(double value) {
  return value;
}
template <>
inline float narrow<float>(float value) {
  return value;
}
template <>
inline BFloat16 narrow<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
inline Half narrow<Half>(float value) {
  const uint32_t bits = bits_of(value), size = bits & 0x7fffffffu;
  uint32_t half;
  if (size >= 0x47800000u) {  // 65536 and more, infinite or NaN
    half = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (size < 0x38800000u) {  // subnormal: added to 0.5, whose last place is half's smallest number
    half = bits_of(float_of(size) + 0.5f) - 0x3f000000u;
  } else {  // the exponent has another bias, 112 less
    half = (size - (112u << 23) + 0xfffu + (size >> 13 & 1u)) >> 13;
  }
  return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | half)};
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

template <typename T>
Delta<T> load_delta(const T* p) {
  return {p[0], p[1], p[2], p[3]};
}
template <typename T>
void store_delta(T* p, const Delta<T>& d) {
  p[0] = d.dx, p[1] = d.dy, p[2] = d.dw, p[3] = d.dh;
}

}  // namespace frcnn
