"""What RoIAlign, its gradient and its fake kernels refuse."""

from __future__ import annotations

import math

import pytest
import torch

import frcnn_ops

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "features, rois, output_size, scale, sampling_ratio, message",
    [
        (torch.zeros(3, 8, 8), torch.zeros(1, 5), 2, 0.5, 0, "features"),
        (torch.zeros(1, 3, 8, 8).long(), torch.zeros(1, 5), 2, 0.5, 0, "features"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 4), 2, 0.5, 0, "rois"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5).half(), 2, 0.5, 0, "rois.*float32"),
        (torch.zeros(1, 3, 8, 8).half(), torch.zeros(1, 5).half(), 2, 0.5, 0, "rois.*float32"),
        (torch.zeros(1, 3, 8, 8).double(), torch.zeros(1, 5), 2, 0.5, 0, "rois.*float64"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), 0, 0.5, 0, "output_size"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), (2, 2, 2), 0.5, 0, "output_size"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), 2, -0.5, 0, "scale"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), 2, NAN, 0, "scale"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), 2, 0.5, -1, "sampling_ratio"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), (2, 2**31), 0.5, 0, "output_size .* from 1 to 65536"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), (2, 2**32 + 2), 0.5, 0, "output_size"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), 2, 0.0, 0, "scale"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), 2, INF, 0, "scale"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), 2, 0.5, 2**31 - 1, "sampling_ratio .* up to 32767"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), 2, 0.5, 2**32 + 2, "sampling_ratio"),
        (
            torch.zeros(1, 3, 2**31, 0),
            torch.zeros(0, 5),
            2,
            0.5,
            0,
            "at most 2147483647 along each dimension",
        ),
        (torch.zeros(1, 0, 2**16, 2**16), torch.zeros(0, 5), 2, 0.5, 0, "65536 x 65536 cells"),
    ],
)
def test_bad_arguments(features, rois, output_size, scale, sampling_ratio, message):
    with pytest.raises(RuntimeError, match=message):
        frcnn_ops.roi_align(features, rois, output_size, scale, sampling_ratio)


GRAD, ROIS = torch.zeros(1, 3, 2, 2), torch.zeros(1, 5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grad": torch.zeros(1, 3, 0, 2)}, r"\(h, w\) of grad is \[0, 2\], expected .* from 1 to 65536"),
        ({"grad": torch.zeros(2, 3, 2, 2)}, "grad has shape .* one entry per RoI"),
        ({"rois": torch.zeros(())}, "rois has shape"),
        ({"sizes": [], "scales": []}, "scales is empty, expected at least one number"),
        ({"scales": [0.5, 0.5]}, "sizes has 2 numbers, expected 4"),
        ({"sizes": [2**32, 2**32]}, "sizes hold a level of 4294967296 x 4294967296 cells"),
        ({"batch": 2**31}, "batch is 2147483648, expected 0 to 2147483647"),
        ({"batch": -1}, "batch is -1"),
        ({"sizes": [2**15, 2**16 - 1], "batch": 2**31 - 1}, "a gradient would have shape .* at most"),
        ({"sampling_ratio": 2**31}, "sampling_ratio"),
    ],
)
def test_bad_arguments_of_the_gradient(change, message):
    """Unchecked, the sizes make it read and write out of bounds."""
    arguments = {"grad": GRAD, "rois": ROIS, "sizes": [8, 8], "batch": 1, "scales": [0.5]} | {
        "sampling_ratio": 0,
        "aligned": True,
        "finest_scale": 1.0,
    }
    with pytest.raises(RuntimeError, match=f"roi_align_backward: {message}"):
        torch.ops.frcnn_ops.roi_align_backward(**arguments | change)


def test_the_fake_kernels_refuse_the_same_numbers():
    features, rois = [torch.zeros(1, 3, 8, 8, device="meta")], torch.zeros(1, 5, device="meta")
    for size, scale, ratio in (
        ([0, 2], 0.5, 0),
        ([2, 2**31], 0.5, 0),
        ([2, 2], 0.0, 0),
        ([2, 2], 0.5, 2**31),
    ):
        with pytest.raises(RuntimeError, match="roi_align: "):
            torch.ops.frcnn_ops.roi_align(features, rois, size, [scale], ratio, True, 1.0)
    for sizes, batch, scales in (([], 1, []), ([2**32, 1], 1, [1.0]), ([8, 8], 2**31, [1.0])):
        with pytest.raises(RuntimeError, match="roi_align_backward: "):
            torch.ops.frcnn_ops.roi_align_backward(
                torch.zeros(1, 3, 2, 2, device="meta"), rois, sizes, batch, scales, 0, True, 1.0
            )


def test_bad_pyramids():
    level, rois = torch.zeros(1, 3, 8, 8), torch.zeros(1, 5)
    with pytest.raises(RuntimeError, match="scales"):
        frcnn_ops.pyramid_roi_align([level, level], rois, 2, [4])
    with pytest.raises(RuntimeError, match="features"):
        frcnn_ops.pyramid_roi_align([], rois, 2, [])
    with pytest.raises(RuntimeError, match="features"):
        frcnn_ops.pyramid_roi_align([level, torch.zeros(1, 4, 4, 4)], rois, 2, [4, 8])
    with pytest.raises(RuntimeError, match="dtype"):
        frcnn_ops.pyramid_roi_align([level, level.half()], rois, 2, [4, 8])
    for stride in (0, -4, NAN):
        with pytest.raises(ValueError, match=r"strides are .* expected positive numbers"):
            frcnn_ops.pyramid_roi_align([level], rois, 2, [stride])
