import math

import pytest
import torch
from torch.library import opcheck

import frcnn_ops
from frcnn_ops import reference

STRIDES, SCALES, RATIOS = [4.0, 8.0, 16.0], [8.0], [0.5, 1.0, 2.0]
SIZES = torch.tensor([[40.0, 61.0], [33.0, 44.0]])


def inputs(device="cpu", dtype=torch.float32, per_cell=3, scale=0.7, counts=(50, 0, 12)):
    """Two images, three levels; anchors drawn with repetition."""
    generator = torch.Generator().manual_seed(0)
    cells = [(10, 16), (5, 8), (3, 4)]
    deltas = [torch.randn(2, 4 * per_cell, *size, generator=generator).mul(scale) for size in cells]
    indices = [
        torch.randint(0, h * w * per_cell, (2, count), generator=generator)
        for (h, w), count in zip(cells, counts, strict=True)
    ]
    return [d.to(device, dtype) for d in deltas], [i.to(device) for i in indices], SIZES.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_oracle(dtype, channels_last, device):
    deltas, indices, sizes = inputs(device, dtype)
    if channels_last:
        deltas = [d.to(memory_format=torch.channels_last) for d in deltas]
    stds = (0.5, 0.4, 1.0, 0.9)
    boxes, valid = frcnn_ops.decode_proposals(deltas, indices, sizes, STRIDES, stds=stds, min_size=3.0)
    on_cpu = [d.cpu() for d in deltas], [i.cpu() for i in indices], sizes.cpu()
    expected, expected_valid = reference.decode_proposals(*on_cpu, STRIDES, SCALES, RATIOS, 0.0, stds, 3.0)
    assert boxes.dtype == torch.float32 and boxes.shape == (2, 62, 4)
    torch.testing.assert_close(boxes.cpu(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(valid.cpu(), expected_valid)
    assert 0 < valid.sum() < valid.numel()


def test_other_anchors(device):
    scales, ratios = (2.0, 4.0), (0.5, 3.0)
    deltas, indices, sizes = inputs(device, per_cell=4)
    boxes, _ = frcnn_ops.decode_proposals(deltas, indices, sizes, STRIDES, scales, ratios, center_offset=0.5)
    expected, _ = reference.decode_proposals(
        [d.cpu() for d in deltas],
        [i.cpu() for i in indices],
        sizes.cpu(),
        STRIDES,
        scales,
        ratios,
        0.5,
        [1.0] * 4,
        0.0,
    )
    torch.testing.assert_close(boxes.cpu(), expected, rtol=1e-5, atol=1e-4)


def test_zero_deltas_are_the_clipped_anchors(device):
    size = torch.tensor([[24.0, 30.0]], device=device)
    every = torch.arange(3 * 4 * 5, device=device)[None]
    deltas = [torch.zeros(1, 12, 4, 5, device=device)]
    boxes, valid = frcnn_ops.decode_proposals(deltas, [every], size, [8])
    (anchors,) = frcnn_ops.grid_anchors([(4, 5)], [8], device=device)
    limits = torch.tensor([30.0, 24, 30, 24], device=device)
    torch.testing.assert_close(boxes[0], anchors.clamp(min=0).minimum(limits), rtol=0, atol=1e-5)
    assert torch.equal(valid[0], (boxes[0, :, 2:] > boxes[0, :, :2]).all(dim=1))


def test_not_a_number_is_invalid(device):
    deltas, indices, sizes = inputs(device)
    deltas[0][0, 3] = math.nan
    deltas[0][1] = math.inf
    boxes, valid = frcnn_ops.decode_proposals(deltas, indices, sizes, STRIDES)
    assert not valid[boxes.isnan().any(dim=-1)].any()
    assert boxes.isnan().any() and valid.any()


def test_proposals_are_constants(device):
    deltas, indices, sizes = inputs(device)
    boxes, _ = frcnn_ops.decode_proposals([d.requires_grad_() for d in deltas], indices, sizes, STRIDES)
    assert not boxes.requires_grad


def test_empty(device):
    deltas, indices, sizes = inputs(device, counts=(0, 0, 0))
    boxes, valid = frcnn_ops.decode_proposals(deltas, indices, sizes, STRIDES)
    assert boxes.shape == (2, 0, 4) and valid.shape == (2, 0)
    no_image = [d[:0] for d in deltas], [i[:0] for i in inputs(device)[1]], sizes[:0]
    assert frcnn_ops.decode_proposals(*no_image, STRIDES)[0].shape == (0, 62, 4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d, i, s: ([], [], s), "deltas is empty"),
        (lambda d, i, s: (d, i[:2], s), "there are 3 deltas, 2 indices and 3 strides"),
        (
            lambda d, i, s: ([d[0][:, :8], *d[1:]], i, s),
            r"deltas has shape \[2, 8, 10, 16\], expected \[B, 4",
        ),
        (lambda d, i, s: ([x.double() for x in d], i, s), "deltas is Double, expected float32, float16"),
        (
            lambda d, i, s: ([d[0].half(), *d[1:]], i, s),
            "deltas is Float but deltas of the first level is Half",
        ),
        (lambda d, i, s: (d, [x.int() for x in i], s), "indices is Int, expected int64"),
        (lambda d, i, s: (d, i, s[:1]), r"deltas has shape \[2, 12, 10, 16\]"),
        (lambda d, i, s: (d, i, s.long()), "image_sizes is Long, expected float32"),
    ],
)
def test_bad_arguments(spoil, message):
    with pytest.raises(RuntimeError, match=f"decode_proposals: {message}"):
        frcnn_ops.decode_proposals(*spoil(*inputs()), STRIDES)


@pytest.mark.parametrize("bad", [-1, 480, 2**40])
def test_index_out_of_range(bad):
    deltas, indices, sizes = inputs()
    indices[0][1, 7] = bad
    with pytest.raises(IndexError, match=f"indices of level 0 hold {bad}, expected 0 to 479"):
        frcnn_ops.decode_proposals(deltas, indices, sizes, STRIDES)


def test_registration(device):
    arguments = STRIDES, SCALES, RATIOS, 0.0, [1.0] * 4, 0.0
    opcheck(torch.ops.frcnn_ops.decode_proposals, (*inputs(device), *arguments))


def test_compiles(device):
    deltas, indices, sizes = inputs(device)

    def widths(*inputs):
        boxes, valid = frcnn_ops.decode_proposals(*inputs, STRIDES)
        return (boxes[..., 2] - boxes[..., 0]) * valid

    compiled = torch.compile(widths, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(deltas, indices, sizes), widths(deltas, indices, sizes))
