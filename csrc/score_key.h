// A float32 score as an integer that ascends from the best to the worst. Torch-free, for CPU and CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "box.h"

namespace frcnn {

// Above every score's key: for what is absent, and for NaN, which goes last of what is there.
constexpr uint32_t kAbsentScore = 0xffffffffu, kNanScore = 0xfffffffeu;

// -0 is equal to 0.
FRCNN_HD uint32_t score_key(float score) {
  if (!(score == score)) return kNanScore;
  score = score == 0.0f ? 0.0f : score;
  uint32_t bits;
  memcpy(&bits, &score, sizeof(bits));
  return (bits & 0x80000000u) != 0 ? bits : 0x7fffffffu - bits;
}

// The score of a key, NaN's and absence's aside.
FRCNN_HD float score_of(uint32_t key) {
  const uint32_t bits = (key & 0x80000000u) != 0 ? key : 0x7fffffffu - key;
  float score;
  memcpy(&score, &bits, sizeof(score));
  return score;
}

}  // namespace frcnn
