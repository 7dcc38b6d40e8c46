// What the two directions of RoIAlign share: the pyramid as a kernel parameter, and where an RoI lies in it.
#pragma once

#include "../bilinear.h"
#include "dtypes.h"

namespace frcnn {

// C: the type that coordinates and sums are computed in.
template <typename C>
struct Pyramid {
  int height[kFrcnnMostLevels], width[kFrcnnMostLevels];  // in cells
  C scale[kFrcnnMostLevels];                              // cells per pixel
  int levels, pooled_height, pooled_width, sampling_ratio;
  int64_t batch, channels, rois;
  bool aligned;
  C finest_scale;
};

// False if the sizes do not fit the kernels' integers.
template <typename C>
bool copy_pyramid(const FrcnnRoiAlign& from, Pyramid<C>* to) {
  *to = {};
  if (from.levels > kFrcnnMostLevels || from.rois > INT32_MAX || from.sampling_ratio > INT16_MAX ||
      from.pooled_height + from.pooled_width > kFrcnnMostBins)
    return false;
  for (int64_t l = 0; l < from.levels; ++l) {
    if (from.sizes[2 * l] > INT32_MAX || from.sizes[2 * l + 1] > INT32_MAX) return false;
    to->height[l] = static_cast<int>(from.sizes[2 * l]);
    to->width[l] = static_cast<int>(from.sizes[2 * l + 1]);
    to->scale[l] = static_cast<C>(from.scales[l]);
  }
  to->levels = static_cast<int>(from.levels);
  to->pooled_height = static_cast<int>(from.pooled_height);
  to->pooled_width = static_cast<int>(from.pooled_width);
  to->sampling_ratio = static_cast<int>(from.sampling_ratio);
  to->batch = from.batch;
  to->channels = from.channels;
  to->rois = from.rois;
  to->aligned = from.aligned;
  to->finest_scale = static_cast<C>(from.finest_scale);
  return true;
}

template <typename C>
struct RoiPlace {
  int level;
  int64_t image;
  RoiAxis<C> y, x;
};

// False if the RoI pools to zero: NaN or far away, of an image that does not exist (the CPU refuses those,
// but an error would need a synchronization here), or on a map without cells.
template <typename C>
__device__ __forceinline__ bool place_roi(const Pyramid<C>& pyramid, const C* roi, RoiPlace<C>* place) {
  const C image = roi[0], x1 = roi[1], y1 = roi[2], x2 = roi[3], y2 = roi[4];
  place->level = 0;
  place->image = 0;
  if (!(image >= C(0) && image < static_cast<C>(pyramid.batch))) return false;
  place->image = static_cast<int64_t>(image);
  place->level = roi_level(x1, y1, x2, y2, pyramid.finest_scale, pyramid.levels);
  const C scale = pyramid.scale[place->level];
  return pyramid.height[place->level] > 0 && pyramid.width[place->level] > 0 &&
         roi_axis(x1, x2, scale, pyramid.pooled_width, pyramid.sampling_ratio, pyramid.aligned, &place->x) &&
         roi_axis(y1, y2, scale, pyramid.pooled_height, pyramid.sampling_ratio, pyramid.aligned, &place->y);
}

}  // namespace frcnn
