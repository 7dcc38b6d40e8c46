"""Every operator at the workloads of R-50-FPN, beside torchvision's and the pure-torch reference.

    python benchmarks/ops.py                      everything, on the GPU if there is one
    python benchmarks/ops.py --only nms --quick   small images, some operators

Ours, torchvision's and the reference take turns in one run; medians are printed with the least bytes that
must move, the bandwidth that makes, its share of the device's copy bandwidth, and peak extra memory. A
library stops taking turns once it has used its budget of seconds. The reference's RoIAlign loops over RoIs in
Python, minutes for a thousand, and runs with --quick only. Results go to ops.json and ops.md in
benchmarks/results/<date>-<machine>.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

import frcnn_ops
from benchmarks import machine, measure, report
from benchmarks.rois import STRIDES, Image
from frcnn_ops import reference

try:
    import torchvision
except ImportError:
    torchvision = None

RESULTS = Path(__file__).resolve().parent / "results"
CHANNELS = 256
RATIOS = (0.5, 1.0, 2.0)
ONES = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """One workload: what each library does, and the bytes that any implementation has to move."""

    name: str
    bytes: int
    subjects: dict[str, Callable[[], object]]


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


def torchvision_pyramid(features: list[Tensor], rois: Tensor) -> Tensor:
    """RoIAlign as torchvision's MultiScaleRoIAlign does it, a call per level; aligned, as ours."""
    levels = reference.roi_levels(rois, len(features), 56.0)
    rois = rois.to(features[0].dtype)
    out = features[0].new_empty(len(rois), features[0].shape[1], 7, 7)
    for level, feature in enumerate(features):
        own = torch.where(levels == level)[0]
        pooled = torchvision.ops.roi_align(feature, rois[own], 7, 1 / STRIDES[level], 0, aligned=True)
        out = out.index_copy(0, own, pooled)
    return out


def roi_align_cases(image: Image, batch: int, count: int, with_reference: bool) -> Iterator[Case]:
    sizes = image.level_sizes(4)
    rois = image.rois(batch, count)
    cells = touched_cells(rois, sizes, batch)
    scales = [1 / s for s in STRIDES[:4]]
    half = torch.float16 if image.device.type == "cuda" else torch.float32
    layouts = {
        (half, torch.channels_last): "channels-last",
        (torch.float32, torch.contiguous_format): "NCHW",
    }
    for (dtype, layout), name in layouts.items():
        maps = [torch.randn(batch, CHANNELS, h, w, device=image.device).to(dtype) for h, w in sizes]
        maps = [m.contiguous(memory_format=layout) for m in maps]
        each = CHANNELS * dtype.itemsize
        title = f"{name} {str(dtype)[6:]}, {batch} x {count} RoIs"

        def forward(pool: Callable[..., Tensor], maps=maps) -> Callable[[], object]:
            return lambda: pool(maps, rois)

        def backward(pool: Callable[..., Tensor], maps=maps) -> Callable[[], object]:
            leaves = [m.detach().requires_grad_() for m in maps]
            out = pool(leaves, rois)
            grad = torch.randn_like(out)
            return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

        def ours(maps, rois):
            return frcnn_ops.pyramid_roi_align(maps, rois, 7, STRIDES[:4])

        def naive(maps, rois):
            return reference.roi_align(maps, rois, (7, 7), scales, 0, True, 56.0)

        pools = {"ours": ours, "reference": naive} if with_reference else {"ours": ours}
        if torchvision:
            pools["torchvision"] = torchvision_pyramid
        subjects = {name: forward(pool) for name, pool in pools.items()}
        yield Case(f"roi_align {title}", (cells + len(rois) * 49) * each, subjects)
        pools.pop("reference", None)
        every = batch * sum(h * w for h, w in sizes)
        subjects = {name: backward(pool) for name, pool in pools.items()}
        yield Case(f"roi_align backward {title}", (every + len(rois) * 49) * each, subjects)


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
    if torchvision:
        subjects["torchvision"] = lambda: torchvision.ops.batched_nms(flat, flat_scores, ids, 0.7)
    yield Case(f"nms {batch} images x 5 levels x {count}", segments * count * 28, subjects)

    boxes_one, scores_one = image.proposals(20 * count)
    classes = torch.arange(20 * count, device=image.device) % 80
    subjects = {"ours": lambda: frcnn_ops.batched_nms(boxes_one, scores_one, classes, 0.5)}
    if torchvision:
        subjects["torchvision"] = lambda: torchvision.ops.batched_nms(boxes_one, scores_one, classes, 0.5)
    yield Case(f"nms {20 * count} boxes, 80 classes", 20 * count * 36, subjects)


def box_cases(image: Image, batch: int) -> Iterator[Case]:
    sizes = image.level_sizes(5)
    flat_sizes = [n for size in sizes for n in size]
    anchors = torch.cat(frcnn_ops.grid_anchors(sizes, STRIDES, device=image.device))
    n = len(anchors)
    subjects = {
        "ours": lambda: frcnn_ops.grid_anchors(sizes, STRIDES, device=image.device),
        "reference": lambda: reference.grid_anchors(flat_sizes, STRIDES, (8.0,), RATIOS, 0.0, image.device),
    }
    if torchvision:
        make = torchvision.models.detection.anchor_utils.AnchorGenerator(
            tuple((8 * s,) for s in STRIDES), (RATIOS,) * 5
        )
        make.cell_anchors = [c.to(image.device) for c in make.cell_anchors]
        steps = [[torch.tensor(s, device=image.device)] * 2 for s in STRIDES]
        subjects["torchvision"] = lambda: make.grid_anchors(sizes, steps)
    yield Case(f"grid_anchors {n}", n * 16, subjects)

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
    if torchvision:
        coder = torchvision.models.detection._utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
        subjects["torchvision"] = lambda: coder.decode_single(codes, rois)
        encoding["torchvision"] = lambda: coder.encode_single(targets, rois)
    yield Case("decode_boxes 512 x 80 classes", 512 * (16 + 80 * 32), subjects)
    yield Case("encode_boxes 512", 512 * 48, encoding)

    gts = image.objects(100).to(image.device)
    subjects = {
        "ours": lambda: frcnn_ops.box_iou(gts, anchors),
        "reference": lambda: reference.box_iou(gts, anchors),
    }
    if torchvision:
        subjects["torchvision"] = lambda: torchvision.ops.box_iou(gts, anchors)
    yield Case(f"box_iou 100 x {n}", 100 * n * 4 + n * 16, subjects)

    count = torch.tensor([100], device=image.device)
    rule = (0.7, 0.3, 0.3, True, -1.0)
    subjects = {
        "ours": lambda: frcnn_ops.assign_max_iou(anchors, gts, *rule[:4]),
        "reference": lambda: reference.assign_max_iou(anchors, gts[None], count, None, None, *rule),
    }
    if torchvision:
        match = torchvision.models.detection._utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
        subjects["torchvision"] = lambda: match(torchvision.ops.box_iou(gts, anchors))
    yield Case(f"assign_max_iou {n} x 100 gts", n * 28, subjects)

    levels = len(STRIDES)
    deltas = [torch.randn(batch, 12, h, w, device=image.device) * 0.3 for h, w in sizes]
    kept = [min(1000, 3 * h * w) for h, w in sizes]
    indices = [
        torch.randn(batch, 3 * h * w, device=image.device).topk(k)[1]
        for (h, w), k in zip(sizes, kept, strict=True)
    ]
    image_sizes = torch.tensor([[image.height, image.width]] * batch, device=image.device).float()
    shape = (STRIDES, (8.0,), RATIOS, 0.0, ONES, 0.0)
    subjects = {
        "ours": lambda: frcnn_ops.decode_proposals(deltas, indices, image_sizes, *shape),
        "reference": lambda: reference.decode_proposals(deltas, indices, image_sizes, *shape),
    }  # fmt: skip
    yield Case(f"decode_proposals {batch} x {levels} levels", batch * sum(kept) * 41, subjects)


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
        if torchvision:
            function = getattr(torchvision.ops, peer)
            subjects["torchvision"] = step(lambda f=function: f(pred, target, reduction="mean"))
        yield Case(f"{mode}_loss forward and backward, {count}", count * 80, subjects)


def all_cases(image: Image, batches: list[int], quick: bool) -> Iterator[Case]:
    shrink = 5 if quick else 1
    yield from box_cases(image, batches[-1])
    for count in (512, 20000):
        yield from loss_cases(image, count // shrink)
    for batch in batches:
        yield from nms_cases(image, batch, 1000 // shrink)
    for batch in batches:
        for count in (1000, 512):
            yield from roi_align_cases(image, batch, count // shrink, quick)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Of one call; on a GPU the mean of several in a row, between events."""
    if device.type != "cuda":
        return measure.timed(call, device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(5):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 5e3


def extra_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that a call holds above what was held before, its results included."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def run_case(case: Case, device: torch.device, budget: float, most: int = 100) -> dict[str, object]:
    """Median seconds and extra memory of each subject, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in case.subjects}
    memory, spent = {}, dict.fromkeys(case.subjects, 0.0)
    for name, call in case.subjects.items():
        started = time.perf_counter()
        call()  # warms up
        memory[name] = extra_bytes(call, device)
        spent[name] = time.perf_counter() - started
    for _ in range(most):
        for name, call in case.subjects.items():
            if seconds[name] and spent[name] > budget:
                continue
            started = time.perf_counter()
            seconds[name].append(seconds_of(call, device))
            spent[name] += time.perf_counter() - started
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"name": case.name, "bytes": case.bytes, "seconds": medians, "extra_bytes": memory,
            "samples": {name: len(values) for name, values in seconds.items()}}  # fmt: skip


def as_markdown(rows: list[dict], found: dict[str, object], copy: float) -> str:
    def ratio(row: dict, peer: str) -> str:
        seconds = row["seconds"]
        return f"{seconds[peer] / seconds['ours']:.1f}x" if peer in seconds else "-"

    lines = []
    for row in rows:
        ours, memory = row["seconds"]["ours"], row["extra_bytes"]["ours"]
        rate = row["bytes"] / ours
        lines.append([
            row["name"], f"{ours * 1e3:.3f}", f"{row['bytes'] / 1e6:.2f}", f"{rate / 1e9:.1f}",
            f"{rate / copy:.0%}", ratio(row, "torchvision"), ratio(row, "reference"),
            "-" if memory is None else f"{memory / 1e6:.1f}",
        ])  # fmt: skip
    header = "operator|ms|least MB|GB/s|of copy|torchvision / ours|reference / ours|extra MB".split("|")
    device = found.get("gpu", "no GPU: these are the CPU operators")
    about = f"{found['name']} ({device}), torch {found['torch']}, commit {found['commit']}"
    about += f", load {found['load_average']}"
    return f"# Operators\n\n{about}; copy bandwidth {copy / 1e9:.0f} GB/s\n\n{report.table(header, lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument("--quick", action="store_true", help="256 x 320 pixels, fewer boxes, batch 1")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 1 2 8 on a GPU, else 1")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per case and library")
    parser.add_argument(
        "--save", action=argparse.BooleanOptionalAction, default=True, help="write the results"
    )
    options = parser.parse_args()

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        print("no GPU: timing the CPU operators; the goals for a GPU stay unmeasured", file=sys.stderr)
    if torchvision is None:
        print("torchvision is not installed: its column stays empty", file=sys.stderr)
    height, width = (256, 320) if options.quick else (800, 1333)
    batches = options.batches or ([1, 2, 8] if device.type == "cuda" and not options.quick else [1])
    copy = measure.copy_bandwidth(device)
    rows = []
    for case in all_cases(Image(height, width, device), batches, options.quick):
        if options.only not in case.name:
            continue
        rows.append(run_case(case, device, options.budget))
        milliseconds = {name: round(s * 1e3, 3) for name, s in rows[-1]["seconds"].items()}
        print(case.name, milliseconds, flush=True)
    if not rows:
        raise SystemExit(f"no case's name contains {options.only!r}")
    found = machine.describe(device, torch.get_num_threads())
    text = as_markdown(rows, found, copy)
    print("\n" + text)
    if options.save and not options.quick:
        folder = RESULTS / f"{datetime.date.today()}-{found['name']}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ops.md").write_text(text)
        (folder / "ops.json").write_text(
            json.dumps({"machine": found, "copy_bandwidth": copy, "cases": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
