"""RoIAlign and NMS on the CPU, timed against torchvision's.

    python benchmarks/cpu_ops.py --peer-python /path/to/other/env/bin/python

Each library runs in a process of its own (so their torch versions may differ) on the same seeded inputs. Runs
alternate between the two, so that whatever else the machine does hits both; medians and their ratio are
printed. Without --peer-python only ours is timed. torchvision gets contiguous features, the layout it reads;
ours is timed on channels-last ("cl") and on contiguous ones.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

IMAGE = (800, 1344)
STRIDES = (4, 8, 16, 32)
CASES = (
    "roi_align stress",
    "roi_align stress backward",
    "roi_align pyramid",
    "roi_align pyramid backward",
    "roi_align pyramid, 100 RoIs",
    "roi_align training, 512 RoIs",
    "nms 4800 boxes, 80 groups",
    "nms 5000 boxes, 5 groups, 0.7",
    "nms 5000 boxes",
    "nms 100000 boxes",
)


def random_boxes(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """[count, 4] inside the image; square roots of areas log-uniform in [low, high] pixels."""
    size = torch.rand(count, generator=generator) * math.log(high / low) + math.log(low)
    aspect = (torch.rand(count, generator=generator) - 0.5) * math.log(4)
    half = torch.stack([size + aspect / 2, size - aspect / 2], dim=1).exp() / 2
    limit = torch.tensor([IMAGE[1], IMAGE[0]])
    center = torch.rand(count, 2, generator=generator) * limit
    low_corner = (center - half).clamp(min=0)
    return torch.cat([low_corner, torch.minimum(center + half, limit)], dim=1)


def with_image(boxes: Tensor) -> Tensor:
    return torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)


def ours(case: str, channels_last: bool) -> Callable[[], object]:
    import frcnn_ops

    def pool(features: list[Tensor], rois: Tensor, strides: tuple[int, ...]) -> Tensor:
        return frcnn_ops.pyramid_roi_align(features, rois, 7, strides)

    return prepare(case, channels_last, pool, frcnn_ops.nms, frcnn_ops.batched_nms)


def torchvision(case: str, channels_last: bool) -> Callable[[], object]:
    from torchvision import ops

    def pool(features: list[Tensor], rois: Tensor, strides: tuple[int, ...]) -> Tensor:
        if len(features) == 1:
            return ops.roi_align(features[0], rois, 7, 1 / strides[0], 0, True)
        area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
        level = (area.sqrt() / 56 + 1e-6).log2().floor().clamp(0, len(features) - 1)
        out = features[0].new_zeros(len(rois), features[0].shape[1], 7, 7)
        for index, (feature, stride) in enumerate(zip(features, strides)):  # noqa: B905
            own = (level == index).nonzero().flatten()
            out[own] = ops.roi_align(feature, rois[own], 7, 1 / stride, 0, True)
        return out

    return prepare(case, channels_last, pool, ops.nms, ops.batched_nms)


def prepare(case: str, channels_last: bool, pool, nms, batched_nms) -> Callable[[], object]:
    """The inputs of a case, and a function that runs it once."""
    generator = torch.Generator().manual_seed(0)
    if case.startswith("nms"):
        count = int(case.split()[1])
        boxes, scores = random_boxes(count, 16, 200, generator), torch.rand(count, generator=generator)
        if "groups" not in case:
            return lambda: nms(boxes, scores, 0.5)
        threshold = 0.7 if "0.7" in case else 0.5
        groups = torch.randint(int(case.split(", ")[1].split()[0]), (count,), generator=generator)
        return lambda: batched_nms(boxes, scores, groups, threshold)

    stress = "stress" in case
    batch = 2 if "training" in case else 1
    strides = STRIDES[:1] if stress else STRIDES
    count = 100 if "100" in case else 512 * batch if "training" in case else 1000
    # The stress case puts everything on the finest level, where a bin of a large RoI holds many samples.
    boxes = random_boxes(count, *((32, 600) if stress else (16, 600)), generator)
    rois = with_image(boxes)
    rois[:, 0] = torch.arange(count) % batch
    shapes = [(batch, 256, IMAGE[0] // stride, IMAGE[1] // stride) for stride in strides]
    features = [torch.randn(shape, generator=generator) for shape in shapes]
    if channels_last:
        features = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
    if "backward" not in case and "training" not in case:
        return lambda: pool(features, rois, strides)
    for feature in features:
        feature.requires_grad_()
    if "training" in case:
        return lambda: torch.autograd.grad(pool(features, rois, strides).sum(), features)
    out = pool(features, rois, strides)
    grad = torch.randn(out.shape, generator=generator).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    return lambda: torch.autograd.grad(out, features, grad, retain_graph=True)


def serve(library: str, threads: int) -> None:
    """Prepares or runs the case that each line of standard input names; answers in milliseconds."""
    torch.set_num_threads(threads)
    run = None
    for line in sys.stdin:
        request = json.loads(line)
        if request is not None:
            prepare_case = ours if library == "ours" else torchvision
            run = prepare_case(*request)
        start = time.perf_counter()
        run()
        print(json.dumps((time.perf_counter() - start) * 1e3), flush=True)


class Worker:
    """A process that runs one library's cases on demand."""

    def __init__(self, python: str, library: str, threads: int) -> None:
        command = [python, __file__, "--serve", library, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: tuple[str, bool] | None) -> float:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the worker stopped: {' '.join(self.process.args)}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", help="interpreter of an environment with torchvision")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--serve", choices=("ours", "torchvision"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.threads)

    mine = Worker(sys.executable, "ours", args.threads)
    peer = Worker(args.peer_python, "torchvision", args.threads) if args.peer_python else None
    print(f"{args.threads} threads, median of {args.rounds} alternating runs, milliseconds")
    print(f"{'':42}{'ours':>9}{'torchvision':>13}{'ratio':>8}")
    for case in CASES:
        for channels_last in (True, False) if case.startswith("roi_align") else (False,):
            name = case + (", cl" if channels_last else "")
            if args.match not in name:
                continue
            mine.ask((case, channels_last))
            if peer:
                peer.ask((case, False))
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(args.rounds):
                times[0].append(mine.ask(None))
                if peer:
                    times[1].append(peer.ask(None))
            own = statistics.median(times[0])
            other = statistics.median(times[1]) if peer else math.nan
            print(f"{name:42}{own:9.2f}{other:13.2f}{other / own:7.1f}x", flush=True)
    mine.close()
    if peer:
        peer.close()


if __name__ == "__main__":
    main()
