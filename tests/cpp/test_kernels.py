"""Every CUDA kernel, run thread by thread on the CPU, agrees with the CPU operator on its cases (cases.py).

The checked build of the emulator also fails on any access out of bounds, read of memory nobody wrote, race,
or barrier that some threads miss; the seed draws the inputs and the order of blocks and threads.
"""

from __future__ import annotations

import subprocess
import sys

import emulated
import numpy as np
import pytest
import torch
from cases import CASES, EMULATED
from tensors import arguments, operator, tensor
from torch.library import opcheck

import frcnn_ops  # noqa: F401  (registers torch.ops.frcnn_ops)

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no C++20 compiler (g++ 11 or newer)")
needs_sanitizer = pytest.mark.skipif(emulated.sanitizer() is None, reason="no address sanitizer (libasan)")

SEEDS = range(3)
HALVES = (torch.float16, torch.bfloat16)
# RoIAlign sums in another order than the CPU operator, reductions over another tree; everything else is the
# same arithmetic and has to give the same bits. (rtol, atol) by type of number.
SUMMED = {"roi_align", "roi_align_backward", "fold_norms_backward", "rpn_loss"}
SUMMED |= {"box_head_loss", "box_head_loss_backward", "relu_bias_gradient"}
SAME_BITS = ["roi_align_backward", "iou_loss", "assign_max_iou", "nms_padded", "fold_norms_backward"]
SAME_BITS += ["sample_anchors", "sample_proposals", "rpn_loss", "box_head_loss", "box_head_loss_backward"]
SAME_BITS += ["relu_bias_gradient"]
SUMS = {"float32": (1e-5, 1e-5), "float64": (1e-12, 1e-12), "half": (2e-3, 2e-3), "bfloat16": (2e-2, 2e-2)}


def expected(op: str, case: dict, device: str = "cpu") -> list[np.ndarray]:
    """What the operator returns for a case, half and bfloat16 widened."""
    result = operator(op)(**arguments(op, case, device))
    results = result if isinstance(result, (tuple, list)) else [result]
    return [r.cpu().float().numpy() if r.dtype in HALVES else r.cpu().numpy() for r in results]


def emulate(op: str, case: dict, seed: int) -> list[np.ndarray]:
    result = EMULATED[op](**case, **{"order" if "seed" in case else "seed": seed})
    results = result if isinstance(result, (tuple, list)) else [result]
    kind = case.get("kind")
    return [tensor(r, kind).float().numpy() if r.dtype == np.uint16 else r for r in results]


def check(op: str, case: dict, got: list[np.ndarray], rtol: float, atol: float) -> None:
    want = expected(op, case)
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=rtol, atol=atol, err_msg=str(case))


def kind_of(case: dict) -> str:
    return case.get("kind") or (case["pred"].dtype.name if "pred" in case else "float32")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("op", CASES)
def test_agrees_with_the_cpu_operator(op, seed):
    for case in CASES[op](seed):
        summed = op in SUMMED or (op == "iou_loss" and case["reduction"] != "none")
        check(op, case, emulate(op, case, seed), *(SUMS[kind_of(case)] if summed else (0, 0)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("op", CASES)
def test_cuda_agrees_with_the_cpu_operator(op):
    for case in CASES[op](0):
        check(op, case, expected(op, case, "cuda"), *SUMS[kind_of(case)])


@pytest.mark.parametrize("op", CASES)
def test_registration(op):
    for case in list(CASES[op](0))[:2]:
        opcheck(operator(op), (), arguments(op, case), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("op", SAME_BITS)
def test_order_of_threads_does_not_matter(op):
    """The same bits whatever runs first."""
    for case in CASES[op](0):
        runs = [[r.tobytes() for r in emulate(op, case, seed)] for seed in range(3)]
        assert runs[0] == runs[1] == runs[2]


def test_infinite_gradient_stays_in_its_cells():
    grad = np.ones((1, 8, 2, 2), np.float32)
    grad[0, :, 0, 0] = np.inf
    rois = np.array([[0, 4, 4, 12, 12]], np.float32)
    (out,) = EMULATED["roi_align_backward"](grad, rois, [20, 20], 1, [1.0], 0, True, 56.0)
    assert np.isinf(out).any() and not np.isnan(out).any()
    assert np.isfinite(out[..., 9:, :]).all() and np.isfinite(out[..., 9:]).all()


def test_roi_of_an_image_that_does_not_exist_pools_to_zero():
    """The CPU operator raises; a kernel cannot without a synchronization, but it must not read there."""
    features = [np.ones((2, 8, 6, 6), np.float32)]
    rois = np.array([[i, 1, 1, 4, 4] for i in (2, -1, np.nan, 1e30, 1)], np.float32)
    out = EMULATED["roi_align"](features, rois, (2, 2), [1.0], 0, True, 56.0, channels_last=True)
    assert np.array_equal(out[:, 0, 0, 0], [0, 0, 0, 0, 1])
    grads = EMULATED["roi_align_backward"](np.ones_like(out), rois, [6, 6], 2, [1.0], 0, True, 56.0)
    assert grads[0][0].sum() == 0 and np.isclose(grads[0][1].sum(), out[4].size)


def test_largest_block_of_nms():
    """4096 boxes, the most that a block sorts and suppresses."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 2000, (1, 4096, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 200, (1, 4096, 2))], axis=2).astype(np.float32)
    scores = rng.random((1, 4096), dtype=np.float32)
    case = {"boxes": boxes, "scores": scores, "iou_threshold": 0.5, "max_keep": 600}
    got, want = emulate("nms_padded", case, 0), expected("nms_padded", case)
    assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])


@needs_sanitizer
def test_kernels_under_the_sanitizers():
    """All cases once more with the address and undefined-behavior sanitizers, in a process of their own."""
    emulated.build("sanitized")
    environment = {**emulated.sanitized_environment(), "FRCNN_EMULATED": "sanitized"}
    child = subprocess.run(
        [sys.executable, "run_cases.py"],
        cwd=emulated.HERE, env=environment, text=True, capture_output=True,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-6000:]
