"""RoIAlign reads maps as they lie: the same bits from both layouts, no copy, no cell beside those sampled."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import frcnn_ops
from frcnn_ops import reference

LAST = torch.channels_last
ALL = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def random_map(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_rois(count, batch, extent, dtype=torch.float32, seed=0):
    """Of all sizes, some beyond the border, some mirrored."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, batch, (count, 1), generator=generator)
    center = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * extent
    half = torch.rand(count, 2, generator=generator) ** 3 * extent
    half[::9] *= -1
    rois = torch.cat([image, center - half, center + half], dim=1)
    return rois.double() if dtype == torch.float64 else rois


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("width", [1, 5, 16, 17, 41])
@pytest.mark.parametrize("channels", [1, 63, 64, 130, 260])
def test_both_layouts_give_the_same_bits(channels, width, dtype):
    """Rows of one tile and of several, whole and cut; one block of channels, several, and a part."""
    maps = [random_map(2, channels, h, width, dtype=dtype, seed=h) for h in (30, 15)]
    rois = random_rois(60, 2, 90.0, dtype)
    planes = frcnn_ops.pyramid_roi_align(maps, rois, (3, 2), (2, 4), finest_scale=14)
    last = frcnn_ops.pyramid_roi_align(
        [m.contiguous(memory_format=LAST) for m in maps], rois, (3, 2), (2, 4), finest_scale=14
    )
    assert planes.is_contiguous() and last.is_contiguous(memory_format=LAST)
    assert torch.equal(planes, last) and planes.abs().sum() > 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_cell_that_is_not_finite_reaches_the_bins_that_sample_it(value, sampling_ratio, layout):
    """Cells beside them have weight zero, and are not multiplied with it."""
    features = random_map(1, 130, 20, 40)
    features[torch.rand(features.shape, generator=torch.Generator().manual_seed(1)) < 0.01] = value
    rois = random_rois(30, 1, 40.0, seed=2)
    out = frcnn_ops.roi_align(features.contiguous(memory_format=layout), rois, (4, 5), 1.0, sampling_ratio)
    expected = reference.roi_align([features], rois, (4, 5), [1.0], sampling_ratio, True, 1.0)
    assert 0 < out.isfinite().sum() < out.numel()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_cells_that_no_roi_samples_may_hold_what_they_like(layout):
    features = torch.full((1, 70, 40, 60), math.nan)
    features[:, :, 10:21, 18:31] = 2.0
    rois = torch.tensor([[0, 20.0, 12, 28, 18], [0, 19.0, 11, 30, 20]])
    out = frcnn_ops.roi_align(features.contiguous(memory_format=layout), rois, 7, 1.0)
    torch.testing.assert_close(out, torch.full_like(out, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planes_have_the_same_bits_for_any_number_of_threads(dtype):
    """Each thread has copied cells of its own, whichever RoIs it took before."""
    maps = [random_map(1, 70, n, n + 9, dtype=dtype) for n in (60, 30)]
    rois = random_rois(300, 1, 120.0)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            results.append(frcnn_ops.pyramid_roi_align(maps, rois, 7, (2, 4)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", ALL)
def test_views_of_larger_maps_and_levels_of_other_layouts(dtype):
    whole = random_map(3, 20, 30, 41, dtype=dtype)
    rois = random_rois(40, 2, 60.0, dtype)
    crop, skip = whole[1:, :, 3:25, 2:37], whole[::2, ::2, :, ::3]
    for view in (crop, skip, crop.contiguous(memory_format=LAST)[:, :, 1:, 1:], skip.transpose(2, 3)):
        expected = frcnn_ops.roi_align(view.contiguous(), rois, 4, 0.5)
        assert torch.equal(frcnn_ops.roi_align(view, rois, 4, 0.5), expected)
    plain = [whole[:2], random_map(2, 20, 15, 20, dtype=dtype)]
    mixed = [plain[0], plain[1].contiguous(memory_format=LAST)]
    for levels in (mixed, mixed[::-1]):
        ordered = plain if levels is mixed else plain[::-1]
        expected = frcnn_ops.pyramid_roi_align(ordered, rois, 3, (2, 4), finest_scale=14)
        assert torch.equal(frcnn_ops.pyramid_roi_align(levels, rois, 3, (2, 4), finest_scale=14), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("sampling_ratio", [0, 1])
def test_rows_of_many_tiles(layout, sampling_ratio):
    """A bin of thousands of cells, and one sample in each."""
    features = random_map(1, 2, 3, 40_000).contiguous(memory_format=layout)
    rois = torch.tensor([[0, -5.0, 0, 39_000, 3], [0, 35_000.0, 0, 90_000, 2], [0, 7.0, 0, 9, 1]])
    out = frcnn_ops.roi_align(features, rois, (1, 5), 1.0, sampling_ratio)
    if sampling_ratio == 1:
        expected = reference.roi_align([features], rois, (1, 5), [1.0], 1, True, 1.0)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    else:
        rows = features[0, :, :, 10_000:12_000].mean((1, 2))
        alone = frcnn_ops.roi_align(features, torch.tensor([[0, 10_000.0, 0, 12_000, 3]]), 1, 1.0)
        torch.testing.assert_close(alone.flatten(), rows, rtol=1e-2, atol=1e-3)
        assert out.isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_nothing_is_left_of_what_the_memory_held(layout):
    """RoIs without a sample are zero, in a result large enough for large pages."""
    features = random_map(1, 64, 20, 20).contiguous(memory_format=layout)
    rois = random_rois(400, 1, 20.0)
    outside = torch.arange(400) % 3 == 0
    rois[outside, 1:] = torch.tensor([100.0, 100, 120, 120])
    rois[outside & (torch.arange(400) % 2 == 0), 1:] = torch.tensor([2.0, 100, 9, 120])
    for _ in range(3):
        torch.full((400, 64, 7, 7), math.nan)
        out = frcnn_ops.roi_align(features, rois, 7, 1.0)
        assert torch.equal(out[outside], torch.zeros_like(out[outside])) and out.isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_nothing_to_pool(layout):
    for shape in ((0, 3, 5, 5), (1, 0, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)):
        features = torch.zeros(shape).contiguous(memory_format=layout)
        rois = torch.zeros(0 if shape[0] == 0 else 3, 5)
        pooled = frcnn_ops.roi_align(features, rois, 2, 0.5)
        assert torch.equal(pooled, torch.zeros(len(rois), shape[1], 2, 2))


PEAK = """
import re, torch, frcnn_ops
torch.set_num_threads(2)
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
rois = torch.tensor([[0, 10.0 * k, 20, 10 * k + 40, 90] for k in range(50)])
maps = torch.ones(1, 64, 1000, 1000, dtype=torch.{dtype})
frcnn_ops.roi_align(maps[:, :, :60, :60].contiguous(), rois, 7, 0.5)  # what the first call loads
before = peak()
frcnn_ops.roi_align(maps, rois, 7, 0.5)
print((peak() - before) / maps.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says there what the peak was")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer's own memory counts")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planes_are_not_copied(dtype):
    """The most memory that a process of its own held, beside what it held with the map."""
    command = [sys.executable, "-c", PEAK.format(dtype=dtype)]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 0.2
