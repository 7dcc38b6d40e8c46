// A random order of a number of things, made one place at a time: nothing is sorted and nothing is stored.
// Torch-free, for CPU and CUDA, which so draw alike.
#pragma once

#include <cstdint>

#include "box.h"

namespace frcnn {

// A bijection of 64 bits, each of which depends on all (Steele et al. 2014, SplitMix64).
FRCNN_HD uint64_t mixed(uint64_t v) {
  v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
  v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
  return v ^ (v >> 31);
}
// One of many keys that a seed stands for.
FRCNN_HD uint64_t key_of(uint64_t seed, uint64_t number) {
  return mixed(mixed(seed) + 0x9e3779b97f4a7c15u * (number + 1));
}

// Which of `size` things, numbered from 0, comes at this place of the order that the key stands for: each at
// one place. A swap-or-not shuffle (Hoang, Morris, Rogaway 2012): in every round the numbers are paired by a
// random reflection, and a random bit of each pair says whether it swaps.
FRCNN_HD uint32_t shuffled(uint32_t place, uint32_t size, uint64_t key) {
  constexpr int kRounds = 32;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t drawn = mixed(key + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(round));
    const uint32_t pivot = static_cast<uint32_t>(((drawn >> 32) * size) >> 32);
    const uint32_t partner = pivot >= place ? pivot - place : pivot + size - place;
    const uint32_t pair = place > partner ? place : partner;
    if ((mixed(drawn + 0xd1342543de82ef95u * (pair + uint64_t{1})) >> 63) != 0) place = partner;
  }
  return place;
}

// The sampled positives or negatives of an image: `drawn` of `there`.
struct Draw {
  uint32_t there, drawn;
  uint64_t key;
  // The rank of what a place takes. Where all are taken, they stay in order.
  FRCNN_HD uint32_t rank(uint32_t place) const {
    return drawn == there ? place : shuffled(place, there, key);
  }
};

struct Draws {
  Draw positive, negative;
};
FRCNN_HD Draws draws_of(int64_t positives, int64_t negatives, int64_t slots, int64_t most_positive,
                        uint64_t seed, int64_t image) {
  const int64_t first = positives < most_positive ? positives : most_positive, rest = slots - first;
  const uint64_t number = static_cast<uint64_t>(image) * 2;
  return {{static_cast<uint32_t>(positives), static_cast<uint32_t>(first), key_of(seed, number)},
          {static_cast<uint32_t>(negatives), static_cast<uint32_t>(negatives < rest ? negatives : rest),
           key_of(seed, number + 1)}};
}

}  // namespace frcnn
