"""RoIAlign."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check

MOST_CELLS = 2**20
"""An RoI with an edge this far from the origin of its map, in cells, pools to zero."""


def roi_levels(rois: Tensor, levels: int, finest_scale: float) -> Tensor:
    """The pyramid level of each RoI, int64 [K]."""
    size = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = (size / finest_scale + 1e-6).log2().floor()
    return level.nan_to_num(nan=0, neginf=0).clamp(0, levels - 1).long()


def _axis_weights(start: Tensor, extent: Tensor, bins: int, sampling_ratio: int, size: int) -> Tensor:
    """How much each of ``size`` feature cells contributes to each bin along one axis -> [bins, size].

    Bilinear interpolation, its border rules and the mean over samples are all products of one factor per
    axis, so RoIAlign is two small matrix products.
    """
    weights = start.new_zeros(bins, size)
    samples = sampling_ratio if sampling_ratio > 0 else math.ceil((extent / bins).item())
    for bin in range(bins):
        for i in range(samples):
            at = start + bin * (extent / bins) + (i + 0.5) * (extent / bins) / samples
            if size == 0 or at < -1 or at > size:
                continue
            at = at.clamp(0, size - 1)
            low = int(at)
            high = min(low + 1, size - 1)
            weights[bin, low] += (1 - (at - low)) / samples
            weights[bin, high] += (at - low) / samples
    return weights


def _pool_bin(feature: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
    """[C]: only the cells that the bin samples count, so that others may hold what they like."""
    rows, columns = along_y.nonzero().flatten(), along_x.nonzero().flatten()
    return feature[:, rows][:, :, columns] @ along_x[columns] @ along_y[rows]


def roi_align(features, rois, output_size, scales, sampling_ratio, aligned, finest_scale) -> Tensor:
    check("pooling", "roi_align", output_size, scales, sampling_ratio, finest_scale)
    (out_h, out_w), (batch, channels) = output_size, features[0].shape[:2]
    levels = roi_levels(rois, len(features), finest_scale).tolist()
    compute = torch.promote_types(features[0].dtype, torch.float32)
    pooled = []
    for roi, level in zip(rois.to(compute), levels, strict=True):
        if not 0 <= roi[0] < batch:
            raise IndexError(f"roi_align: image {roi[0]} of a batch of {batch}")
        edges = roi[1:] * scales[level] - (0.5 if aligned else 0.0)
        if not (edges.abs() < MOST_CELLS).all():
            pooled.append(features[0].new_zeros(channels, out_h, out_w))
            continue
        x1, y1, x2, y2 = edges
        w, h = x2 - x1, y2 - y1
        if not aligned:
            w, h = w.clamp(min=1), h.clamp(min=1)
        feature = features[level][int(roi[0])].to(compute)
        along_y = _axis_weights(y1, h, out_h, sampling_ratio, feature.shape[1])
        along_x = _axis_weights(x1, w, out_w, sampling_ratio, feature.shape[2])
        bins = [_pool_bin(feature, row, column) for row in along_y for column in along_x]
        pooled.append(torch.stack(bins, dim=1).view(channels, out_h, out_w).to(features[0].dtype))
    return torch.stack(pooled) if pooled else features[0].new_zeros(0, channels, out_h, out_w)
