import pytest
import torch
from torch.library import opcheck

import frcnn_ops
from frcnn_ops import reference


def arguments(cases, group):
    sizes = [tuple(size) for size in cases(f"{group}/sizes").tolist()]
    return (
        sizes,
        cases.numbers(f"{group}/strides"),
        cases.numbers(f"{group}/scales"),
        cases.numbers(f"{group}/ratios"),
    )


@pytest.mark.parametrize(("group", "center_offset"), [("anchors", 0.0), ("anchors_offset", 0.5)])
def test_reference_case(cases, group, center_offset, device):
    levels = frcnn_ops.grid_anchors(*arguments(cases, group), center_offset, device)
    assert len(levels) == len(cases(f"{group}/strides"))
    for i, level in enumerate(levels):
        assert torch.equal(level, cases(f"{group}/level{i}", device))


def test_oracle_on_odd_numbers(device):
    sizes, strides, scales, ratios = [(7, 3), (1, 50), (33, 18)], [3.7, 10.0, 16.0], [1.3, 8.0], [0.33, 1.7]
    ours = torch.cat(frcnn_ops.grid_anchors(sizes, strides, scales, ratios, 0.25, device))
    flat = [cells for size in sizes for cells in size]
    theirs = reference.grid_anchors(flat, strides, scales, ratios, 0.25, "cpu")
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-5)


def test_geometry(device):
    (anchors,) = frcnn_ops.grid_anchors([(2, 3)], [16], scales=[4.0], ratios=[0.5, 2.0], device=device)
    w, h = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    torch.testing.assert_close(w * h, torch.full_like(w, 64.0**2))
    torch.testing.assert_close(h / w, torch.tensor([0.5, 2.0], device=device).repeat(6))
    centers = (anchors[::2, :2] + anchors[::2, 2:]) / 2
    expected = torch.tensor([[x * 16.0, y * 16.0] for y in range(2) for x in range(3)], device=device)
    torch.testing.assert_close(centers, expected)


def test_empty(device):
    empty, full = frcnn_ops.grid_anchors([(0, 5), (1, 1)], [4, 8], device=device)
    assert empty.shape == (0, 4) and full.shape == (3, 4)


def test_default_device_is_followed():
    assert frcnn_ops.grid_anchors([(1, 1)], [4])[0].device.type == "cpu"
    with torch.device("meta"):
        assert frcnn_ops.grid_anchors([(2, 1)], [4])[0].device.type == "meta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [4, 8]}, "sizes has 2 numbers, expected 4"),
        ({"sizes": [(-1, 3)]}, "expected none below 0"),
        ({"sizes": [], "strides": []}, "strides is empty, expected at least one number"),
        ({"scales": []}, "scales is empty"),
        ({"ratios": []}, "ratios is empty"),
        (
            {"sizes": [(2**32, 2**32)]},
            "a level of 4294967296 x 4294967296 cells with 3 anchors each, expected",
        ),
        ({"sizes": [(2**31, 0)]}, "a level of 2147483648 x 0 cells with 3 anchors each, expected at most"),
        ({"sizes": [(2**31 - 1, 1)]}, "expected at most 2147483647 anchors per level"),
        ({"strides": [1e39]}, "strides hold 1e\\+39"),
        ({"strides": [0]}, "strides hold 0, expected positive numbers"),
        ({"ratios": [1.0, -2.0]}, "ratios hold -2"),
        ({"scales": [float("nan")]}, "scales hold nan"),
        ({"center_offset": 2.0}, r"center_offset is 2, expected a number in \[0, 1\]"),
    ],
)
def test_bad_arguments(change, message, device):
    with pytest.raises(RuntimeError, match=message):
        frcnn_ops.grid_anchors(**{"sizes": [(1, 2)], "strides": [4], "device": device, **change})
    with pytest.raises(RuntimeError, match=message):  # the fake kernel asks the same
        frcnn_ops.grid_anchors(**{"sizes": [(1, 2)], "strides": [4], "device": "meta", **change})


@pytest.mark.parametrize("count", [None, 0, 2])
def test_registration(count, device):
    sizes = None if count is None else torch.full((2, 2), 99.0, device=device)[:count]  # no NaN, which differ
    arguments = [3, 4, 1, 2], [4.0, 8.0], [8.0], [0.5, 1.0], 0.0, torch.device(device), sizes
    opcheck(torch.ops.frcnn_ops.grid_anchors, arguments)


def test_anchors_beyond_an_image_are_nan(device):
    shapes, strides = [(3, 4), (2, 2)], [4, 8]
    image_sizes = torch.tensor([[12.0, 16.0], [9.0, 5.0], [0.0, 16.0], [12.0, float("nan")]], device=device)
    plain = frcnn_ops.grid_anchors(shapes, strides, device=device)
    levels = frcnn_ops.grid_anchors(shapes, strides, image_sizes=image_sizes)
    for (height, width), stride, one, all_images in zip(shapes, strides, plain, levels, strict=True):
        assert all_images.shape == (4, height * width * 3, 4)
        for (image_height, image_width), anchors in zip(image_sizes.tolist(), all_images, strict=True):
            for place, found in enumerate(anchors.split(3)):
                y, x = place // width * stride, place % width * stride
                if y < image_height and x < image_width:
                    assert torch.equal(found, one[3 * place : 3 * place + 3])
                else:
                    assert found.isnan().all()


@pytest.mark.parametrize(
    ("image_sizes", "message"),
    [
        (torch.ones(2, 3), r"image_sizes has shape \[2, 3\], expected \[B, 2\]"),
        (torch.ones(2, 2, dtype=torch.float64), "image_sizes is Double, expected float32"),
        (torch.ones(2, 2).to_sparse(), "image_sizes is a sparse tensor, expected a dense one"),
        (torch.ones(2, 2, device="meta"), "image_sizes is on a device of another kind, expected cpu"),
    ],
)
def test_bad_image_sizes(image_sizes, message):
    with pytest.raises(RuntimeError, match=message):
        frcnn_ops.grid_anchors([(1, 2)], [4], device="cpu", image_sizes=image_sizes)


def test_compiles(device):
    def anchors(x):
        return frcnn_ops.grid_anchors([x.shape, (2, 2)], [4, 8], device=x.device)[0] + 1

    x = torch.zeros(3, 5, device=device)
    torch.testing.assert_close(torch.compile(anchors, backend="aot_eager", fullgraph=True)(x), anchors(x))
