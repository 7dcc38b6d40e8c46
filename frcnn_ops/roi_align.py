"""RoIAlign: features of boxes, pooled to one size by bilinear sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Pools the features under each RoI to ``output_size`` bins, each the mean of bilinear samples.

    Args:
        features: [B, C, H, W] float32, float64, float16 or bfloat16.
        rois: [K, 5]: image index in [0, B), then x1 y1 x2 y2 in pixels. float32; float64 with float64
            features. Not differentiable.
        output_size: bins (h, w), or one number for both; each from 1 to 2**16, on CUDA h + w at most 512.
        spatial_scale: feature cells per pixel, 1 / stride.
        sampling_ratio: samples per bin and axis, up to 32767; 0: as many as a bin has cells, rounded up.
        aligned: cell centers lie at half integers. False is the older convention, off by half a cell, in
            which an RoI is at least one cell wide.

    Returns:
        [K, C, h, w] of the dtype and memory format of ``features``, accumulated in float32 (float64 for
        float64). Samples outside the map count as zero, within one cell of it as the border. A feature that
        is not finite reaches the bins that sample it and no others. RoIs of negative size without fixed
        ``sampling_ratio``, RoIs further than 2**20 cells away and RoIs with a NaN or infinite coordinate
        pool to zero. The gradient is the same bits on every run, whatever the number of threads.

    Raises:
        RuntimeError: for other shapes, dtypes or devices, for sizes beyond the above, a map of 2**31 cells or
            more, or a scale that is not positive.
        IndexError: for an image index outside the batch (CPU; elsewhere such an RoI pools to zero).

    Channels-last and contiguous features are read as they are, and give the same bits; other layouts are
    copied first.

    Source: He et al. 2017 (Mask R-CNN), section 3; values as in mmcv's RoIAlign with ``pool_mode="avg"``.
    """
    return _pool([features], rois, _pair(output_size), [spatial_scale], sampling_ratio, aligned, 1.0)


def pyramid_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int | tuple[int, int],
    strides: Sequence[int],
    sampling_ratio: int = 0,
    finest_scale: float = 56,
) -> Tensor:
    """:func:`roi_align` (aligned) where each RoI takes its features from the pyramid level of its size.

    Args:
        features: one [B, C, H, W] per level, finest first; same B, C and dtype.
        rois, output_size, sampling_ratio: as in :func:`roi_align`.
        strides: of the levels, in pixels per cell.
        finest_scale: RoIs of less than twice this size (square root of the area, in pixels) take the first
            level; each further doubling takes the next, up to the last.

    Returns:
        [K, C, h, w] in the order of ``rois``.

    Raises:
        ValueError: for a stride that is not positive.
        RuntimeError, IndexError: as :func:`roi_align`, or if levels disagree.

    Source: Lin et al. 2017 (Feature Pyramid Networks), equation 1:
    ``level = clamp(floor(log2(sqrt(w * h) / finest_scale + 1e-6)), 0, L - 1)``.
    """
    if not all(stride > 0 for stride in strides):
        raise ValueError(f"pyramid_roi_align: strides are {list(strides)}, expected positive numbers")
    scales = [1.0 / stride for stride in strides]
    return _pool(list(features), rois, _pair(output_size), scales, sampling_ratio, True, finest_scale)


def _pool(*arguments) -> Tensor:
    try:
        return torch.ops.frcnn_ops.roi_align(*arguments)
    except RuntimeError as error:
        if "belongs to image" in str(error):  # operators of torch's stable ABI know no other type of error
            raise IndexError(str(error)) from None
        raise


def _pair(size: int | tuple[int, int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _memory_format(features: Tensor) -> torch.memory_format:
    """Channels-last only where the layout can be nothing else, as the kernels decide it."""
    channels_last = features.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not features.is_contiguous() else torch.contiguous_format


@torch.library.register_fake("frcnn_ops::roi_align")
def _(features, rois, output_size, scales, sampling_ratio, aligned, finest_scale):
    check("pooling", "roi_align", output_size, scales, sampling_ratio, finest_scale)
    first = features[0]
    shape = (rois.shape[0], first.shape[1], *output_size)
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=_memory_format(first))


@torch.library.register_fake("frcnn_ops::roi_align_backward")
def _(grad, rois, sizes, batch, scales, sampling_ratio, aligned, finest_scale):
    check("pooling", "roi_align_backward", [1, 1], scales, sampling_ratio, finest_scale)
    check("maps", "roi_align_backward", sizes, len(scales), batch)
    return [
        torch.empty(
            (batch, grad.shape[1], height, width),
            dtype=grad.dtype,
            device=grad.device,
            memory_format=torch.channels_last,
        )
        for height, width in zip(sizes[::2], sizes[1::2], strict=True)
    ]


def _setup_context(ctx, inputs, output):
    features, rois, _, *ctx.pooling = inputs
    ctx.save_for_backward(rois)
    ctx.batch = features[0].shape[0]
    ctx.sizes = [size for feature in features for size in feature.shape[2:]]


def _backward(ctx, grad):
    (rois,) = ctx.saved_tensors
    grads = torch.ops.frcnn_ops.roi_align_backward(grad, rois, ctx.sizes, ctx.batch, *ctx.pooling)
    return grads, None, None, None, None, None, None


torch.library.register_autograd("frcnn_ops::roi_align", _backward, setup_context=_setup_context)
