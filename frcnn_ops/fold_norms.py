"""Norms in evaluation mode, folded into the convolutions before them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fold_norms(
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    shifts: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    eps: float = 1e-5,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of the convolutions that equal `convolution, then norm` of several layers.

    With ``s = gain / sqrt(variance + eps)`` of a filter, its weight becomes ``s * weight`` and its bias
    ``shift - mean * s``. All layers are one kernel launch (of 32 layers each).

    Args:
        weights: per layer [K, ...], the filters first; float32 or float64, any layout.
        gains, shifts, means, variances: per layer [K], of the same dtype and device: what ``nn.BatchNorm2d``
            calls weight, bias, running_mean and running_var.
        eps: added to the variances.
        dtype: of the results: float32, float16 or bfloat16, rounded once; float64 for float64.

    Returns:
        Weights, in the layout of the given ones, and biases [K]. Differentiable with respect to weights,
        gains and shifts; means and variances are constants. The gradient does not depend on the order of
        threads.

    Raises:
        RuntimeError: for lists of different length, no layer, other shapes or dtypes, devices that differ, or
            eps not positive.

    Source: Jacob et al. 2018 (batch normalization folding).
    """
    folded = torch.ops.frcnn_ops.fold_norms(
        list(weights), list(gains), list(shifts), list(means), list(variances), eps, dtype
    )
    return folded[: len(folded) // 2], folded[len(folded) // 2 :]


@torch.library.register_fake("frcnn_ops::fold_norms")
def _(weights, gains, shifts, means, variances, eps, dtype):
    folded = [torch.empty_like(rows(weight), dtype=dtype) for weight in weights]
    return folded + [weight.new_empty(weight.shape[0], dtype=dtype) for weight in weights]


@torch.library.register_fake("frcnn_ops::fold_norms_backward")
def _(grads, weights, gains, shifts, means, variances, eps):
    vectors = [weight.new_empty(weight.shape[0]) for weight in (*weights, *weights)]
    return [torch.empty_like(rows(weight)) for weight in weights] + vectors


def rows(weight: Tensor) -> Tensor:
    """A weight in the layout that results have: its own, where each filter is one piece of memory."""
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return weight if last or weight.is_contiguous() else weight.contiguous()


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps, _ = inputs
    ctx.layers = len(tensors[0])
    ctx.save_for_backward(*(tensor for layers in tensors for tensor in layers))


def _backward(ctx, grads):
    n, saved = ctx.layers, ctx.saved_tensors
    tensors = [list(saved[i * n : (i + 1) * n]) for i in range(5)]
    found = torch.ops.frcnn_ops.fold_norms_backward(list(grads), *tensors, ctx.eps)
    return found[:n], found[n : 2 * n], found[2 * n :], [None] * n, [None] * n, None, None


torch.library.register_autograd("frcnn_ops::fold_norms", _backward, setup_context=_setup_context)
