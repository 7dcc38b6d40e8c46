"""RoIAlign against published values, the pure-torch reference, gradcheck, and hostile RoIs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import frcnn_ops
from frcnn_ops import reference

CASES = Path(__file__).parent / "cases"
NAN, INF = math.nan, math.inf


def random_rois(count: int, batch: int, extent: float, seed: int, dtype=torch.float32) -> torch.Tensor:
    """RoIs of all sizes from a point to twice the image, some beyond its border."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, batch, (count, 1), generator=generator)
    center = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * extent
    half = torch.rand(count, 2, generator=generator) ** 3 * extent
    half[::7] = 0
    return torch.cat([image, center - half, center + half], dim=1).to(dtype)


def random_features(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("case", "abcde")
def test_published_values(case):
    data = np.load(CASES / "roi_align.npz")
    features, rois = torch.from_numpy(data["roi_align/feat"]), torch.from_numpy(data["roi_align/rois"])
    of_case = {
        name: data[f"roi_align_{case}/{name}"] for name in ("output_size", "sampling_ratio", "aligned")
    }
    features.requires_grad_()
    out = frcnn_ops.roi_align(
        features,
        rois,
        tuple(of_case["output_size"].tolist()),
        float(data["roi_align/spatial_scale"]),
        int(of_case["sampling_ratio"]),
        bool(of_case["aligned"]),
    )
    torch.testing.assert_close(out, torch.from_numpy(data[f"roi_align_{case}/out"]), rtol=0, atol=1e-5)
    out.backward(torch.from_numpy(data[f"roi_align_{case}/grad_out"]))
    expected = torch.from_numpy(data[f"roi_align_{case}/grad_feat"])
    torch.testing.assert_close(features.grad, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_published_pyramid_values(channels_last):
    data = np.load(CASES / "pyramid_roi_align.npz")  # cells that no RoI touches are zero there
    features = [torch.from_numpy(data[f"feat{level}"]) for level in range(4)]
    if channels_last:
        features = [f.contiguous(memory_format=torch.channels_last) for f in features]
    rois = torch.from_numpy(data["rois"])
    out = frcnn_ops.pyramid_roi_align(features, rois, 7, data["strides"].tolist())
    expected = torch.from_numpy(data["out"])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("count", [3, 400])
@pytest.mark.parametrize("width", [5, 41])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_maps_are_pooled_alike_as_they_lie_and_copied(count, width, dtype):
    """NCHW maps are read as they lie for few RoIs, and copied for many; also rows shorter than a vector."""
    maps = [random_features(2, 20, 30, width).to(dtype), random_features(2, 20, 15, width).to(dtype)]
    rois = random_rois(count, 2, 80.0, seed=count).to(torch.promote_types(dtype, torch.float32))
    planar, last = (
        frcnn_ops.pyramid_roi_align([m.contiguous(memory_format=layout) for m in maps], rois, 7, (2, 4))
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    assert planar.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(planar, last, rtol=tolerance, atol=tolerance)


# One vector of channels, several, a block of vectors, and remainders of each.
@pytest.mark.parametrize("channels", [1, 3, 16, 130, 150])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_equals_reference(channels, sampling_ratio, aligned):
    features = random_features(2, channels, 13, 19)
    rois = random_rois(40, 2, 80.0, seed=channels)
    out = frcnn_ops.roi_align(features, rois, (3, 5), 0.2, sampling_ratio, aligned)
    expected = reference.roi_align([features], rois, (3, 5), [0.2], sampling_ratio, aligned, 1.0)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_pyramid_levels_at_their_boundaries():
    """Level l holds the value l; RoIs one step below, at and above each change of level."""
    features = [torch.full((1, 1, 64 >> level, 64 >> level), float(level)) for level in range(4)]
    strides = [4, 8, 16, 32]
    sizes, levels = [], []
    for size, level in ((112.0, 1), (224.0, 2), (448.0, 3)):
        sizes += [size * (1 - 1e-5), size, size * (1 + 1e-5)]
        levels += [level - 1, level, level]
    sizes += [1e-3, 5000.0]
    levels += [0, 3]
    rois = torch.tensor([[0, 128 - s / 2, 128 - s / 2, 128 + s / 2, 128 + s / 2] for s in sizes])
    center = frcnn_ops.pyramid_roi_align(features, rois, 3, strides)[:, 0, 1, 1]
    assert center[:-1].round().tolist() == levels[:-1]
    expected = reference.roi_align(features, rois, (3, 3), [1 / s for s in strides], 0, True, 56.0)
    torch.testing.assert_close(center, expected[:, 0, 1, 1])


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_gradcheck(aligned, sampling_ratio):
    features = random_features(2, 3, 6, 7, dtype=torch.float64).requires_grad_()
    rois = random_rois(9, 2, 14.0, seed=1, dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda f: frcnn_ops.roi_align(f, rois, (2, 3), 0.5, sampling_ratio, aligned), (features,)
    )


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradcheck_pyramid(sampling_ratio):
    shapes = [(2, 2, 8, 9), (2, 2, 4, 5), (2, 2, 2, 3)]
    features = [random_features(*s, seed=i, dtype=torch.float64) for i, s in enumerate(shapes)]
    for feature in features:
        feature.requires_grad_()
    rois = random_rois(12, 2, 32.0, seed=2, dtype=torch.float64)
    levels = reference.roi_levels(rois, 3, 8.0)
    assert levels.unique().tolist() == [0, 1, 2]
    torch.autograd.gradcheck(
        lambda *f: frcnn_ops.pyramid_roi_align(f, rois, 2, (4, 8, 16), sampling_ratio, finest_scale=8),
        tuple(features),
    )


def test_gradient_equals_reference():
    features = random_features(2, 37, 11, 9).requires_grad_()
    rois = random_rois(30, 2, 44.0, seed=4)
    grad = random_features(30, 37, 4, 4, seed=5)
    (actual,) = torch.autograd.grad(frcnn_ops.roi_align(features, rois, 4, 0.25), features, grad)
    by_autograd = reference.roi_align([features], rois, (4, 4), [0.25], 0, True, 1.0)
    (expected,) = torch.autograd.grad(by_autograd, features, grad)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_same_bits_on_every_run_and_any_number_of_threads():
    shapes = [(2, 64, 100, 152), (2, 64, 50, 76), (2, 64, 25, 38)]
    features = [random_features(*shape).requires_grad_() for shape in shapes]
    rois = random_rois(150, 2, 400.0, seed=6)
    grad = random_features(150, 64, 7, 7, seed=7)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            out = frcnn_ops.pyramid_roi_align(features, rois, 7, (4, 8, 16))
            results.append([out.detach(), *torch.autograd.grad(out, features, grad)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_half_precision_accumulates_in_float32(dtype, tolerance):
    features = random_features(2, 20, 16, 16, dtype=dtype).requires_grad_()
    rois = random_rois(20, 2, 128.0, seed=8)
    out = frcnn_ops.roi_align(features, rois, 3, 0.125)
    assert out.dtype == dtype
    exact = frcnn_ops.roi_align(features.detach().float(), rois, 3, 0.125)
    # One rounding at the end, no more.
    assert torch.equal(out, exact.to(dtype))
    grad = random_features(*out.shape, seed=9, dtype=dtype)
    (actual,) = torch.autograd.grad(out, features, grad)
    assert actual.dtype == dtype
    wide = features.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(frcnn_ops.roi_align(wide, rois, 3, 0.125), wide, grad.float())
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_format_follows_the_features(dtype):
    features = random_features(2, 8, 10, 12, dtype=dtype)
    rois = random_rois(5, 2, 40.0, seed=10)
    expected = frcnn_ops.roi_align(features, rois, 3, 0.25)
    assert expected.is_contiguous()
    last = frcnn_ops.roi_align(features.contiguous(memory_format=torch.channels_last), rois, 3, 0.25)
    assert last.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2  # the sums have another order
    torch.testing.assert_close(last, expected, rtol=tolerance, atol=tolerance)


def test_non_contiguous():
    features = random_features(4, 6, 10, 24)[::2, 1::2, :, ::2]
    rois = random_rois(10, 2, 40.0, seed=11)
    wide = torch.stack([rois, rois], dim=2)[..., 1]
    assert not features.is_contiguous() and not wide.is_contiguous()
    expected = frcnn_ops.roi_align(features.contiguous(), rois, 3, 0.25)
    assert torch.equal(frcnn_ops.roi_align(features, wide, 3, 0.25), expected)
    leaf = features.contiguous().requires_grad_()
    out = frcnn_ops.roi_align(leaf, wide, 3, 0.25)
    (from_expanded,) = torch.autograd.grad(out.sum(), leaf, retain_graph=True)
    (from_dense,) = torch.autograd.grad(out, leaf, torch.ones(out.shape))
    assert torch.equal(from_expanded, from_dense)


def test_empty():
    features = random_features(2, 3, 5, 5).requires_grad_()
    out = frcnn_ops.roi_align(features, torch.zeros(0, 5), (2, 4), 0.5)
    assert out.shape == (0, 3, 2, 4)
    out.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))
    assert frcnn_ops.roi_align(torch.zeros(0, 3, 5, 5), torch.zeros(0, 5), 2, 0.5).shape == (0, 3, 2, 2)
    assert frcnn_ops.roi_align(torch.zeros(1, 0, 5, 5), torch.zeros(3, 5), 2, 0.5).shape == (3, 0, 2, 2)
    no_cells = frcnn_ops.roi_align(torch.zeros(1, 2, 0, 5), torch.tensor([[0, 1.0, 1, 8, 8]]), 2, 0.5)
    assert torch.equal(no_cells, torch.zeros(1, 2, 2, 2))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e38, -1e38, 3e9])
def test_unusable_coordinates_pool_to_zero(value, aligned, sampling_ratio):
    features = random_features(1, 4, 8, 8).requires_grad_()
    rois = torch.tensor([[0, 4.0, 4, 40, 40]]).repeat(5, 1)
    for i in range(4):
        rois[i, 1 + i] = value
    out = frcnn_ops.roi_align(features, rois, 3, 0.25, sampling_ratio, aligned)
    assert torch.equal(out[:4], torch.zeros(4, 4, 3, 3))
    alone = frcnn_ops.roi_align(features, rois[4:], 3, 0.25, sampling_ratio, aligned)
    assert torch.equal(out[4:], alone) and alone.abs().sum() > 0
    (grad,) = torch.autograd.grad(out.sum(), features)
    (expected,) = torch.autograd.grad(alone.sum(), features)
    assert torch.equal(grad, expected)


def test_huge_rois_cost_no_more_than_the_map():
    """A million cells across: only the samples that can hit the map are visited."""
    features = torch.ones(1, 1, 8, 8)
    rois = torch.tensor([[0, -1e6, -1e6, 1e6, 1e6], [0, -1e6, 0, 1e6, 8], [0, 9e5, 9e5, 1e6, 1e6]]).repeat(
        500, 1
    )
    out = frcnn_ops.roi_align(features, rois, 1, 1.0)
    # 9 of 2e6 sample rows or columns lie in [-1, 8].
    torch.testing.assert_close(out[0].item(), (9 / 2e6) ** 2, rtol=0.3, atol=0)
    torch.testing.assert_close(out[1].item(), 9 / 2e6, rtol=0.3, atol=0)
    assert out[2].item() == 0


def test_negative_sizes():
    features = random_features(1, 2, 8, 8)
    rois = torch.tensor([[0, 30.0, 4, 10, 20]])
    assert torch.equal(frcnn_ops.roi_align(features, rois, 2, 0.25), torch.zeros(1, 2, 2, 2))
    # With a fixed number of samples the RoI is read mirrored.
    mirrored = frcnn_ops.roi_align(features, rois, 2, 0.25, 2)
    plain = frcnn_ops.roi_align(features, rois[:, [0, 3, 2, 1, 4]], 2, 0.25, 2)
    torch.testing.assert_close(mirrored.flip(-1), plain)


@pytest.mark.parametrize("image", [-1.0, 2.0, 1e20, NAN, INF])
def test_image_index_outside_the_batch(image):
    features = random_features(2, 3, 8, 8)
    rois = torch.tensor([[0.0, 1, 1, 9, 9], [image, 1, 1, 9, 9]])
    with pytest.raises(IndexError, match=r"rois\[1\].*batch of 2"):
        frcnn_ops.roi_align(features, rois, 2, 0.5)
    with pytest.raises(IndexError, match=r"rois\[1\].*batch of 2"):
        torch.ops.frcnn_ops.roi_align_backward(torch.zeros(2, 3, 2, 2), rois, [8, 8], 2, [0.5], 0, True, 1.0)


def test_a_feature_that_is_not_finite_reaches_only_the_bins_that_sample_it():
    features = torch.ones(1, 1, 4, 4)
    features[0, 0, 0, 0], features[0, 0, 3, 3] = INF, NAN
    rois = torch.tensor([[0, 0.0, 0, 4, 4]])
    out = frcnn_ops.roi_align(features, rois, 4, 1.0)[0, 0]
    assert out[0, 0] == INF and out[3, 3].isnan() and out.isfinite().sum() == 14
    expected = reference.roi_align([features], rois, (4, 4), [1.0], 0, True, 1.0)[0, 0]
    torch.testing.assert_close(out, expected, equal_nan=True)


inside = st.tuples(*[st.floats(0, 1, width=32)] * 4)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(inside, min_size=1, max_size=20), st.sampled_from([0, 1, 2]), st.booleans())
def test_constant_map_pools_to_the_constant(corners, sampling_ratio, aligned):
    unit = torch.tensor(corners)
    low, high = torch.minimum(unit[:, :2], unit[:, 2:]), torch.maximum(unit[:, :2], unit[:, 2:])
    # At least a cell wide, and inside a 20 x 20 map at stride 8.
    rois = torch.cat([torch.zeros(len(unit), 1), low * 70, high * 70 + 16], dim=1)
    out = frcnn_ops.roi_align(torch.full((1, 3, 20, 20), 2.5), rois, (4, 3), 1 / 8, sampling_ratio, aligned)
    torch.testing.assert_close(out, torch.full_like(out, 2.5), rtol=1e-5, atol=0)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-2, 2, width=32), st.floats(-2, 2, width=32))
def test_linear_in_the_features(seed, a, b):
    first, second = random_features(1, 5, 9, 8, seed=seed), random_features(1, 5, 9, 8, seed=seed + 1)
    rois = random_rois(6, 1, 36.0, seed=seed)
    both = frcnn_ops.roi_align(a * first + b * second, rois, 3, 0.25)
    apart = a * frcnn_ops.roi_align(first, rois, 3, 0.25) + b * frcnn_ops.roi_align(second, rois, 3, 0.25)
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    features = [random_features(2, 4, size, size).contiguous(memory_format=memory_format) for size in (16, 8)]
    for feature in features:
        feature.requires_grad_()
    rois = random_rois(6, 2, 64.0, seed=12)
    torch.library.opcheck(
        torch.ops.frcnn_ops.roi_align.default, (features, rois, [3, 2], [0.25, 0.125], 0, True, 16.0)
    )
    grad = random_features(6, 4, 3, 2)
    torch.library.opcheck(
        torch.ops.frcnn_ops.roi_align_backward.default,
        (grad, rois, [16, 16, 8, 8], 2, [0.25, 0.125], 0, True, 16.0),
    )


def test_compiles_without_graph_break():
    def pooled(first, second, rois):
        return frcnn_ops.pyramid_roi_align([first, second], rois, 2, (4, 8)).square().sum()

    compiled = torch.compile(pooled, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (16, 24):
        features = [random_features(2, 4, s, s).requires_grad_() for s in (size, size // 2)]
        rois = random_rois(size, 2, 64.0, seed=size)
        expected = torch.autograd.grad(pooled(*features, rois), features)
        actual = torch.autograd.grad(compiled(*features, rois), features)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
