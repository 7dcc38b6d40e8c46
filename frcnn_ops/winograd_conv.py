"""3x3 convolutions of float32 maps on the CPU, with a quarter of the multiplications."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .extension import library

LANES, PANEL = 16, 32
# The weight transform for the interpolation points 0, 3/4, -3/4, 3/2, -3/2 and infinity: row p holds the
# powers of its point over the product of its distances to the other finite points.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


@cache
def winograd_available() -> bool:
    """Whether :func:`winograd_conv` runs here: it needs an x86-64 CPU with AVX-512, and torch using it.

    With ATEN_CPU_CAPABILITY=avx2 torch does without AVX-512, and so does this.
    """
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    return _cpu_has_it()


@cache
def _cpu_has_it() -> bool:
    library.frcnn_winograd_available.restype = ctypes.c_bool
    return library.frcnn_winograd_available()


def winograd_fits(channels: int, filters: int) -> bool:
    """Whether the kernel handles these widths: multiples of 16 and 32."""
    return channels % LANES == 0 and filters % PANEL == 0


def winograd_weight(weight: Tensor) -> Tensor:
    """A 3x3 convolution's weight [K, C, 3, 3], transformed and laid out for :func:`winograd_conv`.

    Computed in float64. Returns float32 [K / 32, 36, C, 32].

    Raises:
        ValueError: if the weight is not 3x3, C is not a multiple of 16 or K not of 32.

    Source: Lavin and Gray 2015, with the points of csrc/cpu/winograd_conv.cpp.
    """
    filters, channels, *size = weight.shape
    if size != [3, 3] or not winograd_fits(channels, filters):
        raise ValueError(
            f"expected a weight [K, C, 3, 3] with K a multiple of {PANEL} and C of {LANES}, "
            f"got {list(weight.shape)}"
        )
    points = torch.tensor(POINTS, dtype=torch.float64)
    distances = (points[:, None] - points).fill_diagonal_(1.0).prod(1)
    transform = F.pad(points[:, None] ** torch.arange(3) / distances[:, None], (0, 0, 0, 1))
    transform[-1, 2] = 1.0
    transform = transform.to(weight.device)
    # G g G' as one product: the rows of a tile's 36 elements times the 9 of a filter
    tiles = weight.detach().double().flatten(2) @ torch.kron(transform, transform).T  # [K, C, 36]
    panels = tiles.view(filters // PANEL, PANEL, channels, 36).permute(0, 3, 2, 1)
    return panels.float().contiguous()


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
    if not _cpu_has_it():
        raise NotImplementedError("winograd_conv: needs an x86-64 CPU with AVX-512")
    return torch.ops.frcnn_ops.winograd_conv(x, weight, bias, add, relu)


@torch.library.register_fake("frcnn_ops::winograd_conv")
def _(x, weight, bias, add, relu):
    shape = (x.shape[0], weight.shape[0] * weight.shape[3], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
