"""The losses of a region proposal network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rpn_loss(
    maps: Sequence[Tensor],
    anchors: Tensor,
    gts: Tensor,
    gt_index: Tensor,
    index: Tensor,
    counts: Tensor,
    stds: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Classification and box loss of sampled anchors, straight from the maps of all levels.

    Binary cross-entropy of the logits of all sampled anchors, and the L1 distance of the deltas of the
    positive ones to those that encode their ground truth; both are sums over all images, divided by the
    number of samples, of which each image counts at least one positive and one negative.

    Args:
        maps: one tensor [B, A * 5, H, W] per level, of any floating type and memory format: A logits, then
            four deltas of each of the A anchors.
        anchors: [N, 4] float32, or [B, N, 4], x1 y1 x2 y2 in pixels, as :func:`frcnn_ops.grid_anchors` orders
            them.
        gts: [B, G, 4] float32, padded.
        gt_index: int64 [B, N] as :func:`frcnn_ops.assign_max_iou` returns it.
        index, counts: int64 [B, S] and [B, 2] as :func:`frcnn_ops.sample_anchors` returns them. An anchor
            is at most once among them. A slot whose index is no anchor's is left out; a positive whose
            ground truth does not exist counts as negative.
        stds: what a delta of 1 stands for, one per delta.

    Returns:
        Two scalars, float64 for float64 maps and otherwise float32. Differentiable with respect to ``maps``;
        the gradients are channels-last. Sums are taken in float64 in a fixed order.

    Raises:
        RuntimeError: for other shapes or dtypes, devices that differ, or, on CUDA, more than 16 levels.

    Source: Ren et al. 2015 (Faster R-CNN); the divisor as in MMDetection.
    """
    return torch.ops.frcnn_ops.rpn_loss(list(maps), anchors, gts, gt_index, index, counts, stds)


@torch.library.register_fake("frcnn_ops::rpn_loss")
def _(maps, anchors, gts, gt_index, index, counts, stds):
    dtype = torch.promote_types(maps[0].dtype, torch.float32)
    return maps[0].new_empty((), dtype=dtype), maps[0].new_empty((), dtype=dtype)


@torch.library.register_fake("frcnn_ops::rpn_loss_backward")
def _(by_class, by_box, maps, anchors, gts, gt_index, index, counts, stds):
    sizes = [level.numel() for level in maps]
    parts = maps[0].new_empty(sum(sizes)).split(sizes)  # views of one piece of memory, as the kernel's are
    return [
        part.view(level.shape[0], *level.shape[2:], level.shape[1]).permute(0, 3, 1, 2)
        for part, level in zip(parts, maps, strict=True)
    ]


def _setup_context(ctx, inputs, output):
    maps, *tensors, ctx.stds = inputs
    ctx.save_for_backward(*maps, *tensors)


def _backward(ctx, by_class, by_box):
    *maps, anchors, gts, gt_index, index, counts = ctx.saved_tensors
    grads = torch.ops.frcnn_ops.rpn_loss_backward(
        by_class, by_box, maps, anchors, gts, gt_index, index, counts, ctx.stds
    )
    return grads, *[None] * 6


torch.library.register_autograd("frcnn_ops::rpn_loss", _backward, setup_context=_setup_context)
