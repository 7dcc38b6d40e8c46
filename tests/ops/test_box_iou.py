import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import frcnn_ops
from frcnn_ops import reference

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 300), (300, 7), (513, 65)])
def test_equals_oracle_bitwise(n, m, dtype, device, random_boxes):
    a, b = random_boxes(n, 1, dtype, device), random_boxes(m, 2, dtype, device)
    assert torch.equal(frcnn_ops.box_iou(a, b), reference.box_iou(a, b))


def test_known_values(device):
    a = torch.tensor([[0.0, 0, 10, 10]], device=device)
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 4]], device=device)
    expected = torch.tensor([[1, 50 / 150, 0, 4 / 100]], device=device)
    torch.testing.assert_close(frcnn_ops.box_iou(a, b), expected)


coordinate = st.one_of(
    st.integers(-3, 9).map(float),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 3.4e38]),
)
boxes = st.lists(st.lists(coordinate, min_size=4, max_size=4), min_size=1, max_size=20)


@given(boxes, boxes)
def test_hostile_coordinates(a, b):
    a, b = torch.tensor(a), torch.tensor(b)
    iou = frcnn_ops.box_iou(a, b)
    assert torch.all((iou >= 0) & (iou <= 1))
    assert torch.equal(iou, frcnn_ops.box_iou(b, a).T)
    assert torch.all(iou[a.isnan().any(dim=1)] == 0)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_empty(n, m, device):
    assert frcnn_ops.box_iou(torch.rand(n, 4, device=device), torch.rand(m, 4, device=device)).shape == (n, m)


def test_non_contiguous(device, random_boxes):
    a, b = random_boxes(40, 3, device=device), random_boxes(20, 4, device=device)
    wide = torch.zeros(40, 9, device=device)
    wide[:, 3:7] = a
    spread = frcnn_ops.box_iou(wide[::2, 3:7], b.T.contiguous().T)
    assert torch.equal(spread, frcnn_ops.box_iou(a[::2].contiguous(), b))


def test_thread_count_does_not_matter(threads, random_boxes):
    a, b = random_boxes(900, 5), random_boxes(900, 6)
    threads(1)
    one = frcnn_ops.box_iou(a, b)
    threads(2)
    assert torch.equal(one, frcnn_ops.box_iou(a, b))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.rand(3, 5), torch.rand(2, 4), r"a has shape \[3, 5\], expected \[N, 4\]"),
        (torch.rand(3, 4), torch.rand(4), r"b has shape \[4\], expected \[M, 4\]"),
        (torch.rand(3, 4), torch.rand(3, 4).double(), "b is Double but a is Float"),
        (torch.rand(3, 4).half(), torch.rand(3, 4).half(), r"a is Half, expected float32 or float64"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.rand(3, 4), "a is Long, expected float32"),
    ],
)
def test_bad_arguments(a, b, message):
    with pytest.raises(RuntimeError, match=f"box_iou: {message}"):
        frcnn_ops.box_iou(a, b)


def test_registration(device, random_boxes):
    opcheck(torch.ops.frcnn_ops.box_iou, (random_boxes(5, device=device), random_boxes(3, device=device)))


def test_compiles(device, random_boxes):
    a, b = random_boxes(9, device=device), random_boxes(4, device=device)
    compiled = torch.compile(
        lambda a, b: frcnn_ops.box_iou(a, b).amax(1), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(a, b), frcnn_ops.box_iou(a, b).amax(1))
