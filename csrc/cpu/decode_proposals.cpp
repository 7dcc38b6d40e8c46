// Selected anchors of all levels and images, decoded, clipped and size-filtered in one pass. An anchor is
// computed from its index, never stored.
#include "anchors.h"
#include "parallel.h"
#include "types.h"

void frcnn_cpu_decode_proposals(int64_t type, const FrcnnAnchors* grid, const FrcnnProposalLevel* levels,
                                const float* image_sizes, int64_t batch, const double* stds, double min_size,
                                float* boxes, bool* valid) {
  using namespace frcnn;
  const int64_t per_cell = grid->num_scales * grid->num_ratios;
  const auto unit = stds_of<float>(stds);
  const float least = static_cast<float>(min_size);
  int64_t total = 0, offset = 0;
  for (int64_t l = 0; l < grid->levels; ++l) total += levels[l].count;
  for (int64_t l = 0; l < grid->levels; ++l) {
    const FrcnnProposalLevel& level = levels[l];
    const float stride = grid->strides[l];
    const auto base = base_anchors(*grid, l);
    for_half_or_float(type, [&](auto number) {
      const auto* data = static_cast<const decltype(number)*>(level.deltas);
      parallel_for(batch * level.count, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t image = i / level.count, anchor = level.indices[i];
          const int64_t cell = anchor / per_cell, a = anchor % per_cell;
          const int64_t y = cell / level.width, x = cell % level.width, step = level.channel_stride;
          const auto* source = data + image * level.batch_stride + a * 4 * step + y * level.row_stride +
                               x * level.column_stride;
          const Delta<float> delta{widen(source[0]), widen(source[step]), widen(source[2 * step]),
                                   widen(source[3 * step])};
          const auto own = shift(base[a], static_cast<float>(x) * stride, static_cast<float>(y) * stride);
          const auto moved =
              clip(decode(own, delta, unit), image_sizes[2 * image], image_sizes[2 * image + 1]);
          const int64_t row = image * total + offset + i % level.count;
          store_box(boxes + 4 * row, moved);
          valid[row] = moved.width() > least && moved.height() > least;
        }
      });
    });
    offset += level.count;
  }
}
