"""torchvision's operators as the peers of ours, in whatever interpreter has torchvision.

Each function takes the inputs of one workload and returns what runs it once; `benchmarks/op_cases.py` says
which goes beside which of ours. Runs without frcnn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import _utils
from torchvision.models.detection.anchor_utils import AnchorGenerator

from benchmarks.measure import seconds_of
from benchmarks.worker import serve

Run = Callable[[], object]


def pooled(maps: Sequence[Tensor], rois: Tensor, strides: Sequence[int]) -> Tensor:
    """RoIAlign as torchvision's MultiScaleRoIAlign does it, a call per level; aligned, as ours."""
    rois = rois.to(maps[0].dtype)
    if len(maps) == 1:
        return torchvision.ops.roi_align(maps[0], rois, 7, 1 / strides[0], 0, aligned=True)
    size = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).float().sqrt()
    levels = (size / 56 + 1e-6).log2().floor().clamp(0, len(maps) - 1)
    out = maps[0].new_empty(len(rois), maps[0].shape[1], 7, 7)
    for level, (level_map, stride) in enumerate(zip(maps, strides, strict=True)):
        own = torch.where(levels == level)[0]
        part = torchvision.ops.roi_align(level_map, rois[own], 7, 1 / stride, 0, aligned=True)
        out = out.index_copy(0, own, part)
    return out


def roi_align(maps: Sequence[Tensor], rois: Tensor, strides: Sequence[int]) -> Run:
    return lambda: pooled(maps, rois, strides)


def roi_align_backward(maps: Sequence[Tensor], rois: Tensor, strides: Sequence[int]) -> Run:
    leaves = [level.detach().requires_grad_() for level in maps]
    out = pooled(leaves, rois, strides)
    grad = torch.ones_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Run:
    return lambda: torchvision.ops.nms(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Run:
    return lambda: torchvision.ops.batched_nms(boxes, scores, groups, iou_threshold)


def grid_anchors(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], ratios: tuple[float, ...], device: str
) -> Run:
    make = AnchorGenerator(tuple((8 * stride,) for stride in strides), (ratios,) * len(strides))
    make.cell_anchors = [anchors.to(device) for anchors in make.cell_anchors]
    steps = [[torch.tensor(stride, device=device)] * 2 for stride in strides]
    return lambda: make.grid_anchors(sizes, steps)


def decode_boxes(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Run:
    coder = _utils.BoxCoder(weights)
    return lambda: coder.decode_single(deltas, boxes)


def encode_boxes(targets: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Run:
    coder = _utils.BoxCoder(weights)
    return lambda: coder.encode_single(targets, boxes)


def box_iou(a: Tensor, b: Tensor) -> Run:
    return lambda: torchvision.ops.box_iou(a, b)


def assign_max_iou(gts: Tensor, boxes: Tensor) -> Run:
    match = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
    return lambda: match(torchvision.ops.box_iou(gts, boxes))


def iou_loss(name: str, pred: Tensor, target: Tensor) -> Run:
    pred = pred.detach().requires_grad_()
    loss = getattr(torchvision.ops, name)
    return lambda: torch.autograd.grad(loss(pred, target, reduction="mean"), pred)


class PeerOperators:
    """One of these at a time, called by benchmarks/ops.py through benchmarks/worker.py."""

    def prepare(self, name: str, file: str, device: str) -> str:
        """Take the arguments that torch.save wrote; returns who this is."""
        arguments = torch.load(file, map_location=device, weights_only=True)
        self.device, self._run = torch.device(device), globals()[name](*arguments)
        return f"torchvision {torchvision.__version__} (torch {torch.__version__})"

    def run(self) -> float:
        """Seconds of one call."""
        return seconds_of(self._run, self.device)


if __name__ == "__main__":
    serve(PeerOperators())
