"""Random calls of every operator, valid and hostile; one seed is one call.

    python tests/ops/fuzz.py 17          repeats the call of seed 17
    python tests/ops/fuzz.py 0 2000      makes 2000 calls and prints how many there were of each outcome

A call either returns what the pure-torch reference returns, or raises an error that names the operator. It
runs in a process of its own, so that a crash has a seed: the last number written to the standard error.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from collections import Counter
from pathlib import Path

import torch
from fuzz_arguments import GENERATORS, HALVES, spoiled
from torch import Tensor
from torch.nn import functional

import frcnn_ops
from frcnn_ops import reference

SECONDS = 60
"""Of a call, after which it counts as hanging."""


def tensors_of(arguments: list) -> list[Tensor]:
    listed = [
        item for argument in arguments for item in (argument if isinstance(argument, list) else [argument])
    ]
    return [item for item in listed if isinstance(item, Tensor)]


def finite(arguments: list) -> bool:
    return all(t.isfinite().all() and (not t.numel() or t.abs().max() < 1e6) for t in tensors_of(arguments))


def slow_reference(own: Tensor, sampling_ratio: int, scales: list[float]) -> bool:
    """It visits every sample, the kernels only those on the map."""
    reach = own[:, 1:].double() * max(scales)
    return sampling_ratio > 8 or bool(((reach.abs() < 2**21) & (reach.abs() > 100)).any())


def expected_of(name: str, arguments: list):
    """What the operator should return, or None where the reference cannot say."""
    if name == "roi_align":
        features, own, _, scales, sampling_ratio, *_ = arguments
        # Whether a weight is zero or a rounding from it decides about infinities.
        if not finite(features) or slow_reference(own, sampling_ratio, scales):
            return None
    if name == "roi_align_backward":
        grad, own, sizes, batch, scales, sampling_ratio, *rest = arguments
        if not finite([grad]) or slow_reference(own, sampling_ratio, scales) or batch * sum(sizes) > 10_000:
            return None
        zeros = [
            torch.zeros(batch, grad.shape[1], *size, dtype=grad.dtype, requires_grad=True)
            for size in zip(sizes[::2], sizes[1::2], strict=True)
        ]
        wide = torch.promote_types(grad.dtype, torch.float32)
        pooled = reference.roi_align(
            [z.to(wide) for z in zeros], own, list(grad.shape[2:]), scales, sampling_ratio, *rest
        )
        if not pooled.requires_grad:
            return [z.detach() for z in zeros]
        grads = torch.autograd.grad(pooled, zeros, grad.to(wide), allow_unused=True)
        return [z.detach() if g is None else g for z, g in zip(zeros, grads, strict=True)]
    if name in ("fold_norms_backward", "rpn_loss_backward", "box_head_loss_backward"):
        return expected_grads(name, arguments)
    if name.endswith("_backward"):
        grad, *forward = arguments
        differentiable = 1 if name == "decode_boxes_backward" else 0
        if not finite(arguments):
            return None
        if name == "iou_loss_backward" and (
            grad.dtype == torch.float32 or not proper(*forward[:2], forward[3])
        ):
            return None
        forward[differentiable] = forward[differentiable].clone().requires_grad_()
        loss = getattr(reference, name.removesuffix("_backward"))(*forward)
        return torch.autograd.grad(loss, forward[differentiable], grad)[0]
    if name == "winograd_conv":
        x, weight, bias, add, relu = arguments
        if not finite(arguments):
            return None
        shape = (x.shape[0], 16 * weight.shape[0], *x.shape[2:])
        bias = x.new_zeros(shape[1]) if bias is None else bias
        found = x.new_zeros(shape)
        if found.numel():
            found = functional.conv2d(x.double(), filters_of(weight), bias.double(), padding=1)
        found = found if add is None else found + add
        return (found.relu() if relu else found).float()
    if name == "winograd_weight_gradient":
        x, grad = arguments
        if not finite(arguments):
            return None
        shape = (grad.shape[1], x.shape[1], 3, 3)
        found = x.new_zeros(shape)
        if x.numel():
            found = torch.nn.grad.conv2d_weight(x.double(), shape, grad.double(), padding=1)
        return found.float().permute(2, 3, 1, 0)
    return getattr(reference, name)(*arguments)


def expected_grads(name: str, arguments: list):
    """Of the operators whose losses or inputs are several."""
    if not finite(arguments):
        return None
    if name == "fold_norms_backward":
        grads, *forward = arguments
        forward[:3] = [[t.clone().requires_grad_() for t in layers] for layers in forward[:3]]
        inputs = [t for layers in forward[:3] for t in layers]
        return list(torch.autograd.grad(reference.fold_norms(*forward, grads[0].dtype), inputs, grads))
    by_class, by_box, given, *rest = arguments
    if name == "box_head_loss_backward":
        if rest[-2] != "l1" and given.dtype != torch.float64:  # as of iou_loss_backward
            return None
        given = given.clone().requires_grad_()
        *losses, _ = reference.box_head_loss(given, *rest)
        return torch.autograd.grad(losses, given, (by_class, by_box))[0]
    index = rest[3]
    if any(len(row[row >= 0].unique()) < int((row >= 0).sum()) for row in index):
        return None
    given = [level.clone().requires_grad_() for level in given]
    losses = reference.rpn_loss(given, *rest)
    return list(torch.autograd.grad(losses, given, (by_class, by_box)))


def proper(pred: Tensor, target: Tensor, against: Tensor | None) -> bool:
    """Boxes with an area, in general position: where minima tie, several gradients are right."""
    if against is not None:
        pred = reference.decode_boxes(against, pred, [1.0] * 4, None)
    rounded = any(t.numel() and bool((t == t.round()).any()) for t in (pred, target))
    return not rounded and all(bool((t[:, 2:] - t[:, :2] > 1e-3).all()) for t in (pred, target))


def filters_of(weight: Tensor) -> Tensor:
    """The [K, C, 3, 3] float64 that `winograd_weight` made this from."""
    panels, points, channels, filters = weight.shape
    unit = frcnn_ops.winograd_weight(torch.eye(9).view(9, 1, 3, 3).repeat(4, 16, 1, 1)[:32])[
        0, :, 0, :9
    ].double()
    flat = weight.permute(0, 3, 2, 1).reshape(panels * filters, channels, points).double()
    return (flat @ torch.linalg.pinv(unit).T).view(-1, channels, 3, 3)


def check_close(found, expected, tolerance: float) -> None:
    if isinstance(found, (list, tuple)):
        assert len(found) == len(expected), f"{len(found)} results, expected {len(expected)}"
        for pair in zip(found, expected, strict=True):
            check_close(*pair, tolerance)
        return
    assert found.shape == expected.shape and found.dtype == expected.dtype, (
        f"{found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
    )
    if not found.is_floating_point():
        assert torch.equal(found, expected), f"{found.tolist()}, expected {expected.tolist()}"
        return
    if not found.numel():
        return
    # Rounding is of the size of a row's numbers: a sum may cancel.
    found, expected = (t.double().reshape(-1, t.shape[-1] if t.dim() else 1) for t in (found, expected))
    scale = torch.where(expected.isfinite(), expected.abs(), 0).amax(dim=1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(
        found / scale, expected / scale, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def call(seed: int) -> tuple[str, str]:
    """One call; the operator, and "valid" or what became of a hostile one."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    name = r.choice(sorted(GENERATORS))
    arguments = GENERATORS[name](r)
    hostile = r.random() < 0.5
    if hostile:
        for _ in range(r.choice((1, 1, 2))):
            i = r.randrange(len(arguments))
            arguments[i] = spoiled(r, arguments[i])
    try:
        found = getattr(torch.ops.frcnn_ops, name)(*arguments)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        assert name.removesuffix("_backward") in str(error), f"the error does not name {name}: {error}"
        if name.startswith("winograd") and not frcnn_ops.winograd_available():
            return name, "not on this CPU"
        assert hostile, f"{name} refused valid arguments: {error}"
        return name, "refused"
    if not (hostile and name == "winograd_conv"):  # a spoiled weight is no filter
        expected = expected_of(name, arguments)
        if expected is not None:
            made = list(found) if isinstance(found, (list, tuple)) else [found]
            halves = any(t.dtype in HALVES for t in tensors_of([*arguments, made]))
            check_close(found, expected, 1e-2 if halves else 2e-4)
    return name, "hostile, but in order" if hostile else "valid"


def limit_memory() -> None:
    """A size that gets past the checks is refused, rather than allocated; the sanitizers reserve too much."""
    statm = Path("/proc/self/statm")
    if statm.exists() and "asan" not in os.environ.get("LD_PRELOAD", ""):
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, used + 2**32))


def peak_mb() -> int:
    status = Path("/proc/self/status")
    if (
        status.exists()
    ):  # on Linux the peak of getrusage begins with that of the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20


def main(first: int, last: int) -> None:
    limit_memory()
    counts: Counter[str] = Counter()
    for seed in range(first, last):
        os.write(2, f"{seed}\n".encode())
        signal.alarm(SECONDS)
        try:
            name, outcome = call(seed)
        except Exception:
            print(f"seed {seed}; to repeat it: python {os.path.relpath(__file__)} {seed}", flush=True)
            raise
        counts[f"{name}: {outcome}"] += 1
    signal.alarm(0)
    print(json.dumps({"counts": counts, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    first = int(sys.argv[1])
    main(first, int(sys.argv[2]) if len(sys.argv) > 2 else first + 1)
