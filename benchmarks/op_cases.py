"""The operators' workloads in R-50-FPN: images, and what ours, the reference and a peer do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

import frcnn_ops
from frcnn_ops import reference

STRIDES = (4, 8, 16, 32, 64)
CHANNELS = 256
RATIOS = (0.5, 1.0, 2.0)
ONES = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """One workload: what each library does, and the bytes that any implementation has to move."""

    name: str
    bytes: int
    subjects: dict[str, Callable[[], object]]
    peer: tuple[str, tuple] | None = None
    """A function of benchmarks/peer_ops.py and its arguments."""


@dataclass
class Image:
    """Sizes, and boxes as a detector has them: a few objects, many proposals around each."""

    height: int
    width: int
    device: torch.device
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def padded(self) -> tuple[int, int]:
        return -(-self.height // 32) * 32, -(-self.width // 32) * 32

    def level_sizes(self, levels: int) -> list[tuple[int, int]]:
        height, width = self.padded
        return [(-(-height // s), -(-width // s)) for s in STRIDES[:levels]]

    def random(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def objects(self, count: int) -> Tensor:
        """[count, 4]: centers anywhere, sizes log-uniform from 16 pixels to half the image."""
        limit = torch.tensor([self.width, self.height])
        low = torch.log(torch.tensor(16.0))
        size = torch.exp(low + self.random(count, 1) * (torch.log(limit.min() * 0.5) - low))
        aspect = torch.exp((self.random(count, 1) - 0.5) * 1.4)
        half = torch.cat([size * aspect, size / aspect], dim=1) / 2
        center = self.random(count, 2) * limit
        corners = torch.cat([center - half, center + half], dim=1)
        return corners.clamp(min=0).minimum(limit.repeat(2))

    def proposals(self, count: int) -> tuple[Tensor, Tensor]:
        """[count, 4] boxes around 60 objects, moved and resized by about a fifth, and scores, best first."""
        seeds = self.objects(60)
        own = seeds[torch.randint(0, len(seeds), (count,), generator=self.generator)]
        size = torch.cat([own[:, 2:] - own[:, :2]] * 2, dim=1)
        noise = torch.randn(count, 4, generator=self.generator)
        limit = torch.tensor([self.width, self.height] * 2)
        boxes = (own + noise * size * 0.2).clamp(min=0).minimum(limit)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = torch.exp(-noise.square().sum(dim=1) * 0.5) * self.random(count)
        order = scores.argsort(descending=True)
        return boxes[order].to(self.device), scores[order].to(self.device)

    def rois(self, batch: int, count: int) -> Tensor:
        """[batch * count, 5]"""
        rows = []
        for image in range(batch):
            boxes, _ = self.proposals(count)
            rows.append(torch.cat([boxes.new_full((count, 1), image), boxes], dim=1))
        return torch.cat(rows)


def touched_cells(rois: Tensor, sizes: list[tuple[int, int]], batch: int) -> int:
    """How many cells of the pyramid lie under some RoI."""
    levels = reference.roi_levels(rois.cpu(), len(sizes), 56.0)
    masks = [torch.zeros(batch, h, w, dtype=torch.bool) for h, w in sizes]
    for (image, x1, y1, x2, y2), level in zip(rois.tolist(), levels.tolist(), strict=True):
        s = STRIDES[level]
        masks[level][
            int(image), max(int(y1 / s) - 1, 0) : int(y2 / s) + 2, max(int(x1 / s) - 1, 0) : int(x2 / s) + 2
        ] = True
    return sum(int(mask.sum()) for mask in masks)  # fmt: skip


def roi_align_cases(
    image: Image, batch: int, count: int, levels: int, with_reference: bool
) -> Iterator[Case]:
    """levels: 4, or 1 for everything on the finest, where a bin of a large RoI holds many samples."""
    sizes, strides = image.level_sizes(levels), STRIDES[:levels]
    rois = image.rois(batch, count)
    cells = touched_cells(rois, sizes, batch)
    scales = [1 / s for s in strides]
    half = torch.float16 if image.device.type == "cuda" else torch.float32
    layouts = {
        (half, torch.channels_last): "channels-last",
        (torch.float32, torch.contiguous_format): "NCHW",
    }
    for (dtype, layout), name in layouts.items():
        maps = [torch.randn(batch, CHANNELS, h, w, device=image.device).to(dtype) for h, w in sizes]
        maps = [m.contiguous(memory_format=layout) for m in maps]
        each = CHANNELS * dtype.itemsize
        title = f"{name} {str(dtype)[6:]}, {batch} x {count} RoIs" + ("" if levels > 1 else ", one level")

        def forward(pool: Callable[..., Tensor], maps=maps) -> Callable[[], object]:
            return lambda: pool(maps, rois)

        def backward(pool: Callable[..., Tensor], maps=maps) -> Callable[[], object]:
            leaves = [m.detach().requires_grad_() for m in maps]
            out = pool(leaves, rois)
            grad = torch.randn_like(out)
            return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

        def ours(maps, rois):
            return frcnn_ops.pyramid_roi_align(maps, rois, 7, strides)

        def naive(maps, rois):
            return reference.roi_align(maps, rois, (7, 7), scales, 0, True, 56.0)

        pools = {"ours": ours, "reference": naive} if with_reference else {"ours": ours}
        peer = ([m.contiguous() for m in maps], rois, strides)  # the layout that torchvision reads
        subjects = {name: forward(pool) for name, pool in pools.items()}
        yield Case(f"roi_align {title}", (cells + len(rois) * 49) * each, subjects, ("roi_align", peer))
        pools.pop("reference", None)
        every = batch * sum(h * w for h, w in sizes)
        subjects = {name: backward(pool) for name, pool in pools.items()}
        peer = ("roi_align_backward", peer)
        yield Case(f"roi_align backward {title}", (every + len(rois) * 49) * each, subjects, peer)


def nms_cases(image: Image, batch: int, count: int) -> Iterator[Case]:
    segments = batch * len(STRIDES)
    parts = [image.proposals(count) for _ in range(segments)]
    boxes, scores = (torch.stack(p) for p in zip(*parts, strict=True))
    ids = torch.arange(segments, device=image.device).repeat_interleave(count)
    flat, flat_scores = boxes.flatten(0, 1), scores.flatten()
    subjects = {
        "ours": lambda: frcnn_ops.nms_padded(boxes, scores, 0.7, count),
        "reference": lambda: reference.nms_padded(boxes, scores, 0.7, count),
    }
    peer = "batched_nms", (flat, flat_scores, ids, 0.7)
    yield Case(f"nms {batch} images x 5 levels x {count}", segments * count * 28, subjects, peer)

    boxes_one, scores_one = image.proposals(20 * count)
    classes = torch.arange(20 * count, device=image.device) % 80
    subjects = {"ours": lambda: frcnn_ops.batched_nms(boxes_one, scores_one, classes, 0.5)}
    peer = "batched_nms", (boxes_one, scores_one, classes, 0.5)
    yield Case(f"nms {20 * count} boxes, 80 classes", 20 * count * 36, subjects, peer)

    subjects = {"ours": lambda: frcnn_ops.nms(boxes_one, scores_one, 0.5)}
    peer = "nms", (boxes_one, scores_one, 0.5)
    yield Case(f"nms {20 * count} boxes", 20 * count * 28, subjects, peer)


def box_cases(image: Image, batch: int) -> Iterator[Case]:
    sizes = image.level_sizes(5)
    flat_sizes = [n for size in sizes for n in size]
    anchors = torch.cat(frcnn_ops.grid_anchors(sizes, STRIDES, device=image.device))
    n = len(anchors)
    subjects = {
        "ours": lambda: frcnn_ops.grid_anchors(sizes, STRIDES, device=image.device),
        "reference": lambda: reference.grid_anchors(flat_sizes, STRIDES, (8.0,), RATIOS, 0.0, image.device),
    }
    peer = "grid_anchors", (sizes, STRIDES, RATIOS, str(image.device))
    yield Case(f"grid_anchors {n}", n * 16, subjects, peer)

    rois, _ = image.proposals(512)
    codes = torch.randn(512, 320, device=image.device)
    stds = (0.1, 0.1, 0.2, 0.2)
    subjects = {
        "ours": lambda: frcnn_ops.decode_boxes(rois, codes, stds),
        "reference": lambda: reference.decode_boxes(rois, codes, stds, None),
    }
    targets = image.proposals(512)[0]
    encoding = {
        "ours": lambda: frcnn_ops.encode_boxes(rois, targets, stds),
        "reference": lambda: reference.encode_boxes(rois, targets, stds),
    }
    weights = tuple(1 / std for std in stds)
    peer = "decode_boxes", (codes, rois, weights)
    yield Case("decode_boxes 512 x 80 classes", 512 * (16 + 80 * 32), subjects, peer)
    yield Case("encode_boxes 512", 512 * 48, encoding, ("encode_boxes", (targets, rois, weights)))

    gts = image.objects(100).to(image.device)
    subjects = {
        "ours": lambda: frcnn_ops.box_iou(gts, anchors),
        "reference": lambda: reference.box_iou(gts, anchors),
    }
    yield Case(f"box_iou 100 x {n}", 100 * n * 4 + n * 16, subjects, ("box_iou", (gts, anchors)))

    count = torch.tensor([100], device=image.device)
    rule = (0.7, 0.3, 0.3, True, -1.0)
    subjects = {
        "ours": lambda: frcnn_ops.assign_max_iou(anchors, gts, *rule[:4]),
        "reference": lambda: reference.assign_max_iou(anchors, gts[None], count, None, None, *rule),
    }
    yield Case(f"assign_max_iou {n} x 100 gts", n * 28, subjects, ("assign_max_iou", (gts, anchors)))

    logits, deltas = (
        [torch.randn(batch, a, h, w, device=image.device) * 0.3 for h, w in sizes] for a in (3, 12)
    )
    image_sizes = torch.tensor([[image.height, image.width]] * batch, device=image.device).float()
    grid, rest = (STRIDES, (8.0,), RATIOS), (0.0, 0.7, 1000, 1000)
    subjects = {
        "ours": lambda: frcnn_ops.select_proposals(logits, deltas, image_sizes, *grid, ONES, *rest),
        "reference": lambda: reference.select_proposals(logits, deltas, image_sizes, *grid, 0.0, ONES, *rest),
    }
    yield Case(f"select_proposals {batch} x {n} anchors", batch * n * 4, subjects)

    proposals = torch.stack([image.proposals(1000)[0] for _ in range(batch)])
    certainty = torch.randn(batch, 1000, 81, device=image.device) * 2
    certainty[..., -1] += 6
    selection = (
        *(certainty.softmax(-1), torch.randn(batch, 1000, 320, device=image.device), proposals),
        *(proposals[..., 0].isfinite(), image_sizes, torch.ones_like(image_sizes)),
        *(stds, 0.05, 0.5, 100),
    )
    subjects = {
        "ours": lambda: frcnn_ops.select_detections(*selection),
        "reference": lambda: reference.select_detections(*selection),
    }
    yield Case(f"select_detections {batch} x 1000 x 80 classes", batch * 1000 * 81 * 4, subjects)


def loss_cases(image: Image, count: int) -> Iterator[Case]:
    target, _ = image.proposals(count)
    pred = (target + torch.randn_like(target) * 4).requires_grad_()

    def step(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), pred)

    peers = {"giou": "generalized_box_iou_loss", "ciou": "complete_box_iou_loss"}
    for mode, peer in peers.items():
        fixed = (None, None, ONES, mode, 1e-7, 0.0, "mean")
        subjects = {
            "ours": step(lambda fixed=fixed: torch.ops.frcnn_ops.iou_loss(pred, target, *fixed)),
            "reference": step(lambda fixed=fixed: reference.iou_loss(pred, target, *fixed)),
        }
        arguments = (peer, pred.detach(), target)
        yield Case(
            f"{mode}_loss forward and backward, {count}", count * 80, subjects, ("iou_loss", arguments)
        )


def all_cases(image: Image, batches: list[int], quick: bool) -> Iterator[Case]:
    shrink = 5 if quick else 1
    yield from box_cases(image, batches[-1])
    for count in (512, 20000):
        yield from loss_cases(image, count // shrink)
    for batch in batches:
        yield from nms_cases(image, batch, 1000 // shrink)
    for batch in batches:
        for count, levels in ((1000, 4), (512, 4), (100, 4), (1000, 1)):
            yield from roi_align_cases(image, batch, count // shrink, levels, quick)
