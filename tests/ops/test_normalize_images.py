"""Pixels to the network's input, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import frcnn_ops
from frcnn_ops import reference

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def every_pixel():
    """[1, 16, 16, 3] that holds every value in every channel."""
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    return torch.stack([values, values.flip(1), values.flip(2)], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((103.53, 0, 1e5), (1, 1e-3, 1e-30))])
def test_every_value_in_every_channel(dtype, rgb, mean, std, device):
    images = every_pixel().to(device)
    found = frcnn_ops.normalize_images(images, torch.full((1, 2), 16.0, device=device), mean, std, rgb, dtype)
    pixels = images.flip(-1) if rgb else images
    wanted = (pixels.float() - torch.tensor(mean, device=device)) / torch.tensor(std, device=device)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.permute(0, 2, 3, 1), wanted.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 4, 7, 32])
def test_any_number_of_channels(dtype, channels, device):
    images = torch.randint(0, 256, (2, 5, 9, channels), dtype=torch.uint8, device=device)
    sizes = torch.tensor([[5.0, 9.0], [3.0, 4.0]], device=device)
    mean, std = [3.5 * c for c in range(channels)], [c + 0.3 for c in range(channels)]
    arguments = images, sizes, mean, std, False, dtype
    found = frcnn_ops.normalize_images(*arguments)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, reference.normalize_images(*arguments)) and not found[1, :, 3:].any()
    opcheck(torch.ops.frcnn_ops.normalize_images, arguments)


def test_padding_is_zero_whatever_lies_there(device):
    images = torch.full((3, 4, 5, 3), 255, dtype=torch.uint8, device=device)
    sizes = torch.tensor([[2.0, 3.0], [0.0, 5.0], [9.0, 9.0]], device=device)
    found = frcnn_ops.normalize_images(images, sizes, MEAN, STD, True, torch.float32) != 0
    assert found[0, :, :2, :3].all() and found[0].sum() == 3 * 6
    assert not found[1].any() and found[2].all()


def test_halves_round_as_torch_rounds():
    """Overflow, subnormal numbers and ties: standard deviations spread the values over half's range."""
    images = every_pixel()
    for dtype in DTYPES:
        for std in (2.0**-9, 2.0**-8 * 1.0078125, 2.0**20, 2.0**31.5, 3e38):
            arguments = images, torch.full((1, 2), 16.0), (127.5, 0.5, 255.0), (std,) * 3, False
            wide = frcnn_ops.normalize_images(*arguments, torch.float32)
            assert torch.equal(frcnn_ops.normalize_images(*arguments, dtype), wide.to(dtype))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)},
            r"images has shape .*, expected \[B, H, W, 3\]",
        ),
        ({"images": torch.zeros(1, 4, 4, 3)}, "images is Float, expected uint8"),
        ({"sizes": torch.zeros(2, 2)}, r"sizes has shape \[2, 2\], expected \[B, 2\]"),
        ({"mean": (1.0, 2.0)}, "mean and std have 2 and 3 numbers, expected 1 to 32 each"),
        ({"mean": (1.0,) * 33, "std": (1.0,) * 33}, "mean and std have 33 and 33 numbers, expected 1 to 32"),
        ({"mean": (1.0,) * 4, "std": (1.0,) * 4}, "rgb reverses three channels, and mean has 4 numbers"),
        (
            {"mean": (1.0,) * 4, "std": (1.0,) * 4, "rgb": False},
            r"images has shape .*, expected \[B, H, W, 4\], as many channels as mean",
        ),
        ({"mean": (1.0, 2.0, float("nan"))}, "mean holds nan"),
        ({"std": (1.0, 0.0, 1.0)}, "std hold 0, expected positive"),
        ({"dtype": torch.float64}, "dtype is Double, expected float32, float16 or bfloat16"),
    ],
)
def test_bad_arguments(changes, message):
    valid = {
        "images": torch.zeros(1, 4, 4, 3, dtype=torch.uint8),
        "sizes": torch.zeros(1, 2),
        "mean": MEAN,
        "std": STD,
        "rgb": True,
        "dtype": torch.float32,
    }
    with pytest.raises(RuntimeError, match=f"normalize_images: {message}"):
        frcnn_ops.normalize_images(**{**valid, **changes})


def test_registration(device):
    sizes = torch.full((1, 2), 9.0, device=device)
    arguments = every_pixel().to(device), sizes, MEAN, STD, True, torch.bfloat16
    opcheck(torch.ops.frcnn_ops.normalize_images, arguments)
    compiled = torch.compile(frcnn_ops.normalize_images, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), frcnn_ops.normalize_images(*arguments))
