"""What R-50-FPN asks of a GPU: launches, waits, layout copies and memory, counted on the emulated device.

    python tools/cuda_emulator/emulated_gpu.py python benchmarks/count_launches.py          minutes
    python tools/cuda_emulator/emulated_gpu.py python benchmarks/count_launches.py --quick  small images

Counts are exact, as torch's own CUDA build makes the calls; what cuDNN and cuBLAS launch inside one call is
not seen. Memory is what tensors hold at most, without the libraries' workspaces. Nothing here is a time.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
sys.path.append(str(ROOT / "tools" / "cuda_emulator"))

from emulated_gpu import Row, faults, record  # noqa: E402

import frcnn  # noqa: E402
from benchmarks import machine, report  # noqa: E402
from benchmarks.inputs import annotations  # noqa: E402
from frcnn.engine.distributed import Processes  # noqa: E402
from frcnn.engine.step import Learner  # noqa: E402
from frcnn.structures import Batch  # noqa: E402

RECIPE = "faster_rcnn_r50_fpn_1x_coco"
HEADER = (
    "what|kernels, copies|of them ours|convolutions, products|"
    "nodes of the graph|waits|layout copies|MB up|peak MB"
)


SMALL = ("launch", "memset", "memcpy")
"""What is counted apart from convolutions and matrix products."""


def counted(title: str, call: Callable[[], object]) -> list[str]:
    """A row of the table: what one call does, after one that warms up (and, in graph mode, captures)."""
    _, first = record(call)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = faults()
    _, rows = record(call)
    if faults() != before:
        raise SystemExit(f"{title}: the emulated device has reported faults")
    kinds = Counter(row.kind for row in rows)
    nodes = sum(row.captured and row.kind in (*SMALL, "conv", "gemm") for row in first)
    copies = [row for row in rows if row.kind == "memcpy" and row.name.endswith("to device")]
    uploads = sum(row.bytes for row in copies if not row.name.startswith("device"))
    return [
        title,
        str(sum(kinds[kind] for kind in SMALL)),
        str(sum(of_ours(row) for row in rows)),
        str(kinds["conv"] + kinds["gemm"]),
        str(nodes or "-"),
        str(kinds["sync"]),
        f"{kinds['layout']} ({sum(row.bytes for row in rows if row.kind == 'layout') / 1e6:.1f} MB)",
        f"{uploads / 1e6:.1f}",
        f"{torch.cuda.max_memory_allocated() / 1e6:.1f}",
    ]


def of_ours(row: Row) -> bool:
    return row.kind == "launch" and "frcnn::" in row.name


def detections(size: tuple[int, int], batches: list[int]) -> Iterator[list[str]]:
    model = frcnn.build(RECIPE, weights=None, device="cuda").eval()
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    fit = max(size), min(size)
    for precision in ("float32", "bfloat16"):
        for mode in ("eager", "graph"):
            fast = model.optimize(precision, mode)
            for batch in batches:
                images = [image] * batch
                title = f"detection, {precision}, {mode}, batch {batch}"
                yield counted(title, lambda fast=fast, images=images: fast.predict(images, fit, len(images)))


def training(size: tuple[int, int]) -> Iterator[list[str]]:
    padded = tuple(-(-side // 32) * 32 for side in size)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, *padded, 3), dtype=np.uint8))
    for precision in ("float32", "bfloat16"):
        model = frcnn.build(RECIPE, weights=None, device="cuda").to(memory_format=torch.channels_last)
        boxes, labels = annotations(2, *size, model.config.num_classes)
        batch = Batch(pixels, (size, size), tuple(map(torch.tensor, boxes)), tuple(map(torch.tensor, labels)))
        learner = Learner(model.train(), frcnn.recipe(RECIPE).schedule, precision, Processes())
        pinned = batch.pin_memory()

        def step(model=model, learner=learner, batch=pinned) -> None:
            learner.step(model, [batch.to(torch.device("cuda"), non_blocking=True)], 0.001)

        yield counted(f"training step, {precision}, 2 images", step)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="128 x 160 pixels instead of 800 x 1333")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="of detection")
    options = parser.parse_args()
    if not (torch.cuda.is_available() and torch.cuda.get_device_name().startswith("emulated")):
        raise SystemExit("run it on the emulated device: tools/cuda_emulator/emulated_gpu.py")
    size = (128, 160) if options.quick else (800, 1333)
    rows = []
    for part in (detections(size, options.batches), training(size)):
        for row in part:
            print(" | ".join(row), file=sys.stderr, flush=True)
            rows.append(row)
    height, width = size
    print(
        f"{width}x{height}, torch {torch.__version__}, commit {machine.commit()}, {datetime.date.today()}\n"
    )
    print(report.table(HEADER.split("|"), rows))


if __name__ == "__main__":
    main()
