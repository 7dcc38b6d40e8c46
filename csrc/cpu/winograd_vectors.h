// The vector code of winograd_conv.cpp for one instruction set, included once for each: so no guard. Written
// with the compiler's own vector types, which gcc and clang have on every machine; only the fused
// multiply-add, which they have no operator for, is the set's intrinsic. Every element is computed by the
// same operations in the same order whatever the width is, so all sets give the same bits.
//
//   FRCNN_SET            the set's namespace
//   FRCNN_TARGET         the attribute that lets a function use it
//   FRCNN_LANES          floats in a vector
//   FRCNN_ROWS           tiles that one product computes
//   FRCNN_FILTERS        filters that one product computes: with ROWS, what the registers hold
//   FRCNN_FMA(a, b, c)   a * b + c, rounded once

namespace frcnn::winograd::FRCNN_SET {

typedef float Vector __attribute__((vector_size(4 * FRCNN_LANES)));
typedef float InMemory __attribute__((vector_size(4 * FRCNN_LANES), aligned(4), may_alias));

constexpr int64_t kLanes = FRCNN_LANES;
constexpr int64_t kRows = FRCNN_ROWS;
constexpr int64_t kVectors = FRCNN_FILTERS / kLanes;
constexpr int64_t kStep = 4;  // channels between two branches

#define FRCNN_STEP FRCNN_TARGET FRCNN_INLINE

FRCNN_STEP Vector load(const float* from) { return *reinterpret_cast<const InMemory*>(from); }
FRCNN_STEP void store(float* to, Vector values) { *reinterpret_cast<InMemory*>(to) = values; }
FRCNN_STEP Vector all(float value) { return value - Vector{}; }

constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

// B' d for one column d of six; the result's elements are `step` apart.
FRCNN_STEP void transform_input_line(const Vector* d, Vector* out, int step) {
  const Vector minus_sum = all(-(kA2 + kB2)), product = all(kA2 * kB2);
  out[0] = FRCNN_FMA(product, d[0], FRCNN_FMA(minus_sum, d[2], d[4]));
  out[5 * step] = FRCNN_FMA(product, d[1], FRCNN_FMA(minus_sum, d[3], d[5]));
  const Vector even_a = FRCNN_FMA(all(-kB2), d[2], d[4]);
  const Vector odd_a = kA * FRCNN_FMA(all(-kB2), d[1], d[3]);
  out[1 * step] = even_a + odd_a;
  out[2 * step] = even_a - odd_a;
  const Vector even_b = FRCNN_FMA(all(-kA2), d[2], d[4]);
  const Vector odd_b = kB * FRCNN_FMA(all(-kA2), d[1], d[3]);
  out[3 * step] = even_b + odd_b;
  out[4 * step] = even_b - odd_b;
}

// A' m for one column m of six.
FRCNN_STEP void transform_output_line(const Vector* m, Vector* out, int step) {
  const Vector sum_a = m[1] + m[2], difference_a = m[1] - m[2];
  const Vector sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  out[0] = m[0] + (sum_a + sum_b);
  out[1 * step] = FRCNN_FMA(all(kA), difference_a, kB * difference_b);
  out[2 * step] = FRCNN_FMA(all(kA2), sum_a, kB2 * sum_b);
  out[3 * step] = FRCNN_FMA(all(kA2 * kA), difference_a, FRCNN_FMA(all(kB2 * kB), difference_b, m[5]));
}

// One tile of the input, [6, 6, C] -> v: [36][C], points `stride` apart; zero beyond the image.
FRCNN_TARGET void transform_input(const float* x, const Geometry& g, Tile tile, float* v, int64_t stride) {
  const float* cells[6][6];
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 6; ++j) {
      const int64_t row = tile.y - 1 + i, column = tile.x - 1 + j;
      const bool inside = row >= 0 && row < g.height && column >= 0 && column < g.width;
      cells[i][j] = inside ? x + ((tile.image * g.height + row) * g.width + column) * g.channels : nullptr;
    }
  }
  for (int64_t c = 0; c < g.channels; c += kLanes) {
    Vector half[6][6];
    for (int j = 0; j < 6; ++j) {
      Vector d[6];
      for (int i = 0; i < 6; ++i) d[i] = cells[i][j] ? load(cells[i][j] + c) : Vector{};
      transform_input_line(d, &half[0][j], 6);
    }
    for (int i = 0; i < 6; ++i) {
      Vector line[6];
      transform_input_line(half[i], line, 1);
      for (int j = 0; j < 6; ++j) store(v + (i * 6 + j) * stride + c, line[j]);
    }
  }
}

// a: kRows rows of `depth`; b: panels of [depth, kPanel], `stride` apart -> out: kRows rows of FRCNN_FILTERS,
// `out_stride` apart. Meanwhile fetches from `next` on, `fetched` floats for each of `depth` steps: weights
// come from far away.
FRCNN_TARGET void multiply(const float* a, const float* b, int64_t stride, int64_t depth, const float* next,
                           int64_t fetched, float* out, int64_t out_stride) {
  Vector sums[kRows][kVectors];
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[row][v] = Vector{};
  }
  for (int64_t k = 0; k < depth; k += kStep) {
    __builtin_prefetch(next + k * fetched, 0, 2);
#pragma GCC unroll 4
    for (int64_t step = k; step < k + kStep; ++step) {
      Vector filters[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        filters[v] = load(b + v * kLanes / kPanel * stride + step * kPanel + v * kLanes % kPanel);
      }
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) {
        const Vector value = all(a[row * depth + step]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[row][v] = FRCNN_FMA(value, filters[v], sums[row][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(out + row * out_stride + v * kLanes, sums[row][v]);
  }
}

// m: [36][K], points `stride` apart -> one tile of the output.
FRCNN_TARGET void transform_output(const float* m, int64_t stride, const Geometry& g, Tile tile,
                                   const Epilogue& epilogue, float* out) {
  const int64_t rows = std::min<int64_t>(4, g.height - tile.y);
  const int64_t columns = std::min<int64_t>(4, g.width - tile.x);
  const Vector least = all(epilogue.relu ? 0.0f : -__builtin_inff());
  for (int64_t k = 0; k < g.filters; k += kLanes) {
    Vector half[4][6];
    for (int j = 0; j < 6; ++j) {
      Vector column[6];
      for (int i = 0; i < 6; ++i) column[i] = load(m + (i * 6 + j) * stride + k);
      transform_output_line(column, &half[0][j], 6);
    }
    const Vector shift = epilogue.bias ? load(epilogue.bias + k) : Vector{};
    for (int64_t i = 0; i < rows; ++i) {
      Vector line[4];
      transform_output_line(half[i], line, 1);
      const int64_t first = ((tile.image * g.height + tile.y + i) * g.width + tile.x) * g.filters + k;
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t cell = first + j * g.filters;
        Vector value = line[j] + shift;
        if (epilogue.add) value += load(epilogue.add + cell);
        store(out + cell, value < least ? least : value);  // a NaN is not less, and gets through
      }
    }
  }
}

// A g for one column g of four.
FRCNN_STEP void transform_gradient_line(const Vector* g, Vector* out, int step) {
  const Vector even_a = FRCNN_FMA(all(kA2), g[2], g[0]), odd_a = kA * FRCNN_FMA(all(kA2), g[3], g[1]);
  const Vector even_b = FRCNN_FMA(all(kB2), g[2], g[0]), odd_b = kB * FRCNN_FMA(all(kB2), g[3], g[1]);
  out[0] = g[0];
  out[1 * step] = even_a + odd_a;
  out[2 * step] = even_a - odd_a;
  out[3 * step] = even_b + odd_b;
  out[4 * step] = even_b - odd_b;
  out[5 * step] = g[3];
}

// One tile of the output's gradient, [4, 4, K] -> m: [36][K], points `stride` apart; zero beyond the image.
FRCNN_TARGET void transform_gradient(const float* grad, const Geometry& g, Tile tile, float* m,
                                     int64_t stride) {
  const int64_t rows = std::min<int64_t>(4, g.height - tile.y);
  const int64_t columns = std::min<int64_t>(4, g.width - tile.x);
  const float* first = grad + ((tile.image * g.height + tile.y) * g.width + tile.x) * g.filters;
  for (int64_t k = 0; k < g.filters; k += kLanes) {
    Vector half[6][4];
    for (int64_t j = 0; j < 4; ++j) {
      Vector column[4];
      for (int64_t i = 0; i < 4; ++i) {
        const bool inside = i < rows && j < columns;
        column[i] = inside ? load(first + (i * g.width + j) * g.filters + k) : Vector{};
      }
      transform_gradient_line(column, &half[0][j], 4);
    }
    for (int i = 0; i < 6; ++i) {
      Vector line[6];
      transform_gradient_line(half[i], line, 1);
      for (int j = 0; j < 6; ++j) store(m + (i * 6 + j) * stride + k, line[j]);
    }
  }
}

// sums [kRows, FRCNN_FILTERS] = a' b, of `tiles` rows of each, or += where there are sums before.
FRCNN_TARGET void add_products(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                               int64_t tiles, bool before, float* sums, int64_t sums_stride) {
  Vector products[kRows][kVectors];
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) products[row][v] = Vector{};
  }
  for (int64_t t = 0; t < tiles; ++t, a += a_stride, b += b_stride) {
    Vector filters[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) filters[v] = load(b + v * kLanes);
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
      const Vector value = all(a[row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) products[row][v] = FRCNN_FMA(value, filters[v], products[row][v]);
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* sum = sums + row * sums_stride + v * kLanes;
      store(sum, before ? load(sum) + products[row][v] : products[row][v]);
    }
  }
}

FRCNN_TARGET void transform_tile(const Gradient& gradient, int64_t first, int64_t t) {
  const Tile tile = tile_at(gradient.geometry, first + t);
  transform_input(gradient.x, gradient.geometry, tile, gradient.v + t * gradient.v_row, gradient.v_point);
  transform_gradient(gradient.grad, gradient.geometry, tile, gradient.m + t * gradient.m_row,
                     gradient.m_point);
}

FRCNN_TARGET void add_tiles(const Gradient& gradient, int64_t tiles, bool before, int64_t point, int64_t k) {
  const Geometry& g = gradient.geometry;
  float* sums = gradient.sums + point * gradient.sums_point + k;
  for (int64_t part = 0; part < kFilters; part += FRCNN_FILTERS) {
    for (int64_t c = 0; c < g.channels; c += kRows) {
      add_products(gradient.v + point * gradient.v_point + c, gradient.v_row,
                   gradient.m + point * gradient.m_point + k + part, gradient.m_row, tiles, before,
                   sums + c * g.filters + part, g.filters);
    }
  }
}

// G' s for one column s of six.
FRCNN_STEP void transform_weight_line(const Vector* s, Vector* out, int step) {
  constexpr float kOfA = 1 / (2 * kA2 * (kA2 - kB2)), kOfB = 1 / (2 * kB2 * (kB2 - kA2));
  const Vector sum_a = kOfA * (s[1] + s[2]), difference_a = kOfA * (s[1] - s[2]);
  const Vector sum_b = kOfB * (s[3] + s[4]), difference_b = kOfB * (s[3] - s[4]);
  out[0] = FRCNN_FMA(all(1 / (kA2 * kB2)), s[0], sum_a + sum_b);
  out[1 * step] = FRCNN_FMA(all(kA), difference_a, kB * difference_b);
  out[2 * step] = FRCNN_FMA(all(kA2), sum_a, FRCNN_FMA(all(kB2), sum_b, s[5]));
}

// The sums of a channel -> out [3, 3, C, K]
FRCNN_TARGET void transform_sums(const Gradient& gradient, int64_t c, float* out) {
  const Geometry& g = gradient.geometry;
  for (int64_t k = 0; k < g.filters; k += kLanes) {
    Vector half[3][6];
    for (int j = 0; j < 6; ++j) {
      Vector column[6];
      for (int i = 0; i < 6; ++i) {
        column[i] = load(gradient.sums + (i * 6 + j) * gradient.sums_point + c * g.filters + k);
      }
      transform_weight_line(column, &half[0][j], 6);
    }
    for (int i = 0; i < 3; ++i) {
      Vector line[3];
      transform_weight_line(half[i], line, 1);
      for (int j = 0; j < 3; ++j) store(out + ((i * 3 + j) * g.channels + c) * g.filters + k, line[j]);
    }
  }
}

FRCNN_TARGET void convolve(const Block& block) {
  const Geometry& g = block.geometry;
  const int64_t v_stride = point_stride(block.most, g.channels),
                m_stride = point_stride(block.most, g.filters);
  float *v = block.scratch, *m = block.scratch + kPoints * v_stride;
  for (int64_t t = 0; t < block.tiles; ++t) {
    transform_input(block.x, g, tile_at(g, block.first + t), v + t * g.channels, v_stride);
  }
  const int64_t padded = (block.tiles + kRows - 1) / kRows * kRows;
  for (int64_t point = 0; point < kPoints; ++point) {
    float* rows = v + point * v_stride;
    std::fill(rows + block.tiles * g.channels, rows + padded * g.channels, 0.0f);
  }
  // The products of a point read its rows once for every panel, from L2, and a panel once for all rows.
  const int64_t point_size = g.channels * kPanel, panel_size = kPoints * point_size;
  const int64_t fetched = FRCNN_FILTERS * kRows / padded;
  for (int64_t point = 0; point < kPoints; ++point) {
    for (int64_t k = 0; k < g.filters; k += FRCNN_FILTERS) {
      const float* panels = block.weight + k / kPanel * panel_size + point * point_size;
      const float* next = panels + FRCNN_FILTERS / kPanel * panel_size;
      for (int64_t t = 0; t < padded; t += kRows) {
        multiply(v + point * v_stride + t * g.channels, panels, panel_size, g.channels,
                 next + t / kRows * g.channels * fetched, fetched, m + point * m_stride + t * g.filters + k,
                 g.filters);
      }
    }
  }
  for (int64_t t = 0; t < block.tiles; ++t) {
    transform_output(m + t * g.filters, m_stride, g, tile_at(g, block.first + t), block.epilogue, block.out);
  }
}

#undef FRCNN_STEP

}  // namespace frcnn::winograd::FRCNN_SET

#undef FRCNN_SET
#undef FRCNN_TARGET
#undef FRCNN_LANES
#undef FRCNN_ROWS
#undef FRCNN_FILTERS
#undef FRCNN_FMA
