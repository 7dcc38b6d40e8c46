"""3x3 convolutions of float32 maps on the CPU, with a quarter of the multiplications."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check

CHANNELS, FILTERS = 16, 32  # C and K are multiples of these
PANEL = 16  # filters whose weights lie together
# The weight transform for the interpolation points 0, 3/4, -3/4, 3/2, -3/2 and infinity: row p holds the
# powers of its point over the product of its distances to the other finite points.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


@cache
def winograd_available() -> bool:
    """Whether :func:`winograd_conv` runs here: it needs a CPU with AVX2 and FMA, AVX-512 or NEON.

    Vectors are as wide as torch's own: ATEN_CPU_CAPABILITY=avx2 does without AVX-512, default without AVX2.
    """
    return _what_is_missing() is None


@cache
def _what_is_missing() -> str | None:
    try:
        check("winograd")
    except RuntimeError as error:
        return str(error)
    return None


def winograd_fits(channels: int, filters: int) -> bool:
    """Whether the kernel handles these widths: multiples of 16 and 32."""
    return channels % CHANNELS == 0 and filters % FILTERS == 0


def winograd_weight(weight: Tensor) -> Tensor:
    """A 3x3 convolution's weight [K, C, 3, 3], transformed and laid out for :func:`winograd_conv`.

    Computed in the weight's dtype, but at least float32. Returns float32 [K / 16, 36, C, 16].

    Raises:
        ValueError: if the weight is not 3x3, C is not a multiple of 16 or K not of 32.

    Source: Lavin and Gray 2015, with the points of csrc/cpu/winograd_conv.cpp.
    """
    filters, channels, *size = weight.shape
    if size != [3, 3] or not winograd_fits(channels, filters):
        raise ValueError(
            f"expected a weight [K, C, 3, 3] with K a multiple of {FILTERS} and C of {CHANNELS}, "
            f"got {list(weight.shape)}"
        )
    points = torch.tensor(POINTS, dtype=torch.float64)
    distances = (points[:, None] - points).fill_diagonal_(1.0).prod(1)
    transform = F.pad(points[:, None] ** torch.arange(3) / distances[:, None], (0, 0, 0, 1))
    transform[-1, 2] = 1.0
    transform = torch.kron(transform, transform).to(
        weight.device, torch.promote_types(weight.dtype, torch.float32)
    )
    # G g G' as one product: the 36 elements of a tile from the 9 of a filter
    panels = weight.detach().reshape(filters // PANEL, PANEL, channels, 9).permute(0, 3, 2, 1).flatten(2)
    return (transform @ panels.to(transform.dtype)).float().view(filters // PANEL, 36, channels, PANEL)


def winograd_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, add: Tensor | None = None, relu: bool = False
) -> Tensor:
    """A 3x3 convolution with stride 1 and padding 1, plus ``add``, then ReLU if asked for.

    Its rounding error is about 3e-6 of the largest output, ten times a direct convolution's. Not
    differentiable: it is for inference.

    Args:
        x: [B, C, H, W] float32 on the CPU, best channels-last.
        weight: as :func:`winograd_weight` returns it.
        bias: [K] float32 or None.
        add: [B, K, H, W] float32, best channels-last, or None.

    Returns:
        [B, K, H, W] float32, channels-last.

    Raises:
        NotImplementedError: where :func:`winograd_available` is false.
        RuntimeError: for other shapes or dtypes.

    Source: Lavin and Gray 2015 (Fast Algorithms for Convolutional Neural Networks).
    """
    return _run(torch.ops.frcnn_ops.winograd_conv, x, weight, bias, add, relu)


def winograd_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the weight [K, C, 3, 3] of the convolution that :func:`winograd_conv` computes.

    With Y = A' [(G g G') . (B' d B)] A for each tile, it is G' [(A dY A') . (B' d B)] G, summed over the
    tiles before the last transform: again 36 multiplications instead of 144. The result has the same bits for
    every number of threads and every width of vectors.

    Args:
        x: [B, C, H, W] float32 on the CPU, best channels-last; C a multiple of 16.
        grad: [B, K, H, W] float32, of the convolution's result; K a multiple of 32.

    Returns:
        [K, C, 3, 3] float32.

    Raises:
        NotImplementedError: where :func:`winograd_available` is false.
        RuntimeError: for other shapes or dtypes.

    Source: Lavin and Gray 2015 (Fast Algorithms for Convolutional Neural Networks).
    """
    return _run(torch.ops.frcnn_ops.winograd_weight_gradient, x, grad).permute(3, 2, 0, 1)


def _run(operator, *arguments) -> Tensor:
    try:
        return operator(*arguments)
    except RuntimeError:
        if not winograd_available():  # operators of torch's stable ABI know no other type of error
            raise NotImplementedError(_what_is_missing()) from None
        raise


@torch.library.register_fake("frcnn_ops::winograd_conv")
def _(x, weight, bias, add, relu):
    shape = (x.shape[0], weight.shape[0] * weight.shape[3], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.register_fake("frcnn_ops::winograd_weight_gradient")
def _(x, grad):
    return x.new_empty(3, 3, x.shape[1], grad.shape[1])
