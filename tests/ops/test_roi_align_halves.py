"""RoIAlign reads half and bfloat16 maps as they are: the bits of pooling the same maps in float32."""

from __future__ import annotations

import pytest
import torch

import frcnn_ops

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("channels", [1 << 16, (1 << 16) - 3])  # whole vectors, and some channels left over
@pytest.mark.parametrize("dtype", HALVES)
def test_every_number_is_read_exactly(dtype, channels):
    """Subnormal, infinite and NaN ones too: a RoI that is its only cell returns the cell."""
    cell = torch.arange(channels, dtype=torch.int32).to(torch.int16).view(dtype)
    pooled = frcnn_ops.roi_align(cell.view(1, -1, 1, 1), torch.tensor([[0.0, 0, 0, 1, 1]]), 1, 1.0, 1)
    torch.testing.assert_close(pooled.flatten(), cell, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_sums_are_those_of_float32(dtype, channels_last, random_boxes):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = [torch.randn(2, 150, n, n + 3).to(dtype).contiguous(memory_format=layout) for n in (40, 20)]
    rois = torch.cat([torch.randint(0, 2, (60, 1)).float(), random_boxes(60, 1)], dim=1)
    pooled = frcnn_ops.pyramid_roi_align(maps, rois, 7, (4, 8))
    wide = frcnn_ops.pyramid_roi_align([m.float() for m in maps], rois, 7, (4, 8))
    assert pooled.dtype == dtype and pooled.is_contiguous(memory_format=layout)
    assert torch.equal(pooled, wide.to(dtype))
