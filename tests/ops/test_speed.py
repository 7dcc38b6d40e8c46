"""A guard against slow-downs: the CPU operators beside plain torch code, in turns within one process.

Not a time but a ratio, of the fastest of several turns each, and half of it or less is asked for: one thread
of machines with AVX2 and AVX-512, busy and quiet, had at least 2.0, 36 and 5.4.
"""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

import frcnn_ops

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def times_faster(ours, plain, turns=5):
    """How many times faster, by the fastest turn of each; both warm up first."""
    best = [float("inf")] * 2
    for turn in range(turns + 1):
        for index, call in enumerate((ours, plain)):
            start = time.perf_counter()
            call()
            if turn:
                best[index] = min(best[index], time.perf_counter() - start)
    return best[1] / best[0]


def boxes(count, size, extent):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * (extent - size)
    return torch.cat([corner, corner + size * (0.2 + 0.8 * torch.rand(count, 2, generator=generator))], 1)


def plain_roi_align(maps, own, bins=7, samples=2):
    """A grid of samples for each box, read by torch's own bilinear sampling, then averaged."""
    height, width = maps.shape[-2:]
    steps = (torch.arange(bins * samples) + 0.5) / (bins * samples)
    x, y = (own[:, a, None] + steps * (own[:, a + 2, None] - own[:, a, None]) for a in (0, 1))
    x, y = (2 * x / width - 1)[:, None, :], (2 * y / height - 1)[:, :, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), -1)
    sampled = F.grid_sample(maps.expand(len(own), -1, -1, -1), grid, align_corners=False)
    return F.avg_pool2d(sampled, samples)


def plain_nms(own, scores, threshold):
    order = scores.argsort(descending=True)
    overlap = frcnn_ops.box_iou(own[order], own[order]) > threshold
    keep = torch.ones(len(own), dtype=torch.bool)
    for index in range(len(own)):
        if keep[index]:
            keep[index + 1 :] &= ~overlap[index, index + 1 :]
    return order[keep]


@pytest.mark.usefixtures("one_thread")
def test_roi_align():
    maps = torch.randn(1, 64, 100, 168, generator=torch.Generator().manual_seed(0))
    maps = maps.contiguous(memory_format=torch.channels_last)
    own = boxes(100, 40.0, 100.0)
    rois = torch.cat([torch.zeros(100, 1), own], 1)
    found, wanted = frcnn_ops.roi_align(maps, rois, 7, 1.0, 2), plain_roi_align(maps, own)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    ratio = times_faster(
        lambda: frcnn_ops.roi_align(maps, rois, 7, 1.0, 2), lambda: plain_roi_align(maps, own)
    )
    assert ratio > 1


@pytest.mark.usefixtures("one_thread")
def test_nms():
    own, scores = boxes(1500, 60.0, 400.0), torch.rand(1500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(frcnn_ops.nms(own, scores, 0.5), plain_nms(own, scores, 0.5))
    assert times_faster(lambda: frcnn_ops.nms(own, scores, 0.5), lambda: plain_nms(own, scores, 0.5)) > 15


@pytest.mark.usefixtures("one_thread")
def test_normalization():
    images = torch.randint(0, 256, (1, 320, 320, 3), dtype=torch.uint8)
    sizes = torch.full((1, 2), 320.0)

    def plain():
        return (images.flip(-1).float() - torch.tensor(MEAN)) / torch.tensor(STD)

    ours = frcnn_ops.normalize_images
    assert times_faster(lambda: ours(images, sizes, MEAN, STD, True, torch.float32), plain) > 2
