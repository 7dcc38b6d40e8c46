// What winograd_conv.cpp and its vector code share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../kernel_api.h"

namespace frcnn::winograd {

constexpr int64_t kPoints = kFrcnnWinogradPoints;    // elements of a 6x6 input tile
constexpr int64_t kPanel = kFrcnnWinogradPanel;      // filters whose weights lie together
constexpr int64_t kFilters = kFrcnnWinogradFilters;  // that a block finishes at a time

struct Geometry {
  int64_t height, width, channels, filters;
  int64_t tiles_y, tiles_x;
};

struct Tile {
  int64_t image, y, x;  // y, x: of its first output
};

inline Tile tile_at(const Geometry& g, int64_t index) {
  const int64_t row = index / g.tiles_x;
  return {row / g.tiles_y, row % g.tiles_y * 4, index % g.tiles_x * 4};
}

// What happens to a sum of products: + bias[k], + add at the same place, then ReLU.
struct Epilogue {
  const float* bias;  // [K] or null
  const float* add;   // as the output, or null
  bool relu;
};

// Some tiles of one convolution, from x to out.
struct Block {
  const float* x;
  const float* weight;
  Epilogue epilogue;
  Geometry geometry;
  int64_t first, tiles;
  int64_t most;    // tiles that there is scratch for
  float* scratch;  // scratch_floats(most, geometry)
  float* out;
};

// The gradient of the weights: of each point the sum, over tiles, of products of v's channels and m's
// filters. Rows of tiles are an odd number of half cache lines apart, so that they do not share cache sets.
struct Gradient {
  const float *x, *grad;
  Geometry geometry;
  float *v, *m, *sums;   // [36, tiles, C and some], [36, tiles, K and some], [36, C and some, K]
  int64_t v_row, m_row;  // floats from a tile to the next
  int64_t v_point, m_point, sums_point;  // and from a point to the next
};

// Points are an odd number of cache lines apart, so that the 36 streams do not share cache sets.
inline int64_t point_stride(int64_t most, int64_t channels) { return most * channels + 16; }
inline int64_t scratch_floats(int64_t most, const Geometry& g) {
  return kPoints * (point_stride(most, g.channels) + point_stride(most, g.filters));
}

}  // namespace frcnn::winograd
