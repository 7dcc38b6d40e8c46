"""How a training step scales with processes: a model of it, and how far the model is from what runs here.

python benchmarks/scaling.py                 the modeled table of docs/explanation/scale.md
python benchmarks/scaling.py --measure 1 2 4 steps on this machine's CPU over gloo, beside what the model says

The model: forward, then backward, through which DDP's buckets of gradients become ready one after the other.
Each is summed when it is ready and the one before is done; the optimizer waits for the last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass

import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

import frcnn
from frcnn.detector import FasterRCNN
from frcnn.structures import Batch

BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sums at once."""


@dataclass(frozen=True)
class Step:
    """Seconds of a process's forward pass, backward pass and optimizer, and bytes of its gradients."""

    forward: float
    backward: float
    optimizer: float
    gradients: float


@dataclass(frozen=True)
class Link:
    """Between the processes of a ring: bytes per second in each direction, and seconds before the first."""

    bandwidth: float
    latency: float = 20e-6


def all_reduce(size: float, processes: int, link: Link) -> float:
    """Seconds of a ring's: every process sends and receives 2 (n - 1) / n of the bytes in 2 (n - 1) turns."""
    turns = 2 * (processes - 1)
    return turns * (size / processes / link.bandwidth + link.latency)


def seconds(step: Step, links: list[Link], counts: list[int]) -> float:
    """Of one step. links and counts: of each ring that a bucket goes through, in a machine and between."""
    buckets = max(1, round(step.gradients / BUCKET))
    size = step.gradients / buckets
    cost = sum(all_reduce(size, count, link) for count, link in zip(counts, links, strict=True))
    done = 0.0
    for number in range(1, buckets + 1):
        done = max(step.forward + step.backward * number / buckets, done) + cost
    return max(done, step.forward + step.backward) + step.optimizer


def gradient_bytes(recipe: str) -> int:
    with torch.device("meta"):
        chosen = frcnn.recipe(recipe)
        model = FasterRCNN(chosen.model, chosen.data)
    return sum(4 * parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


NVLINK = Link(350e9, 10e-6)
ETHERNET = {
    "25 Gb/s": Link(25e9 / 8 * 0.9),
    "100 Gb/s": Link(100e9 / 8 * 0.9),
    "400 Gb/s": Link(400e9 / 8 * 0.9),
}
STEPS = {"faster_rcnn_r50_fpn_1x_coco": 0.020, "faster_rcnn_x101_64x4d_fpn_1x_coco": 0.020 * 2.4}
"""Seconds of a step of two images that are assumed: the goal for an H100, and the same by operations."""


def table() -> None:
    print(
        "| recipe | gradients | 1 machine, 8 GPUs | "
        + " | ".join(f"{machines} machines, {name}" for name in ETHERNET for machines in (2, 16))
        + " |"
    )
    print("|---|---:|" + "---:|" * 7)
    for recipe, whole in STEPS.items():
        size = gradient_bytes(recipe)
        step = Step(whole * 0.32, whole * 0.63, whole * 0.05, size)
        cells = [whole / seconds(step, [NVLINK], [8])]
        for link in ETHERNET.values():
            cells += [whole / seconds(step, [NVLINK, link], [8, m]) for m in (2, 16)]
        print(f"| {recipe} | {size / 1e6:.0f} MB | " + " | ".join(f"{cell:.0%}" for cell in cells) + " |")


def process(rank: int, count: int, place: str, results: multiprocessing.SimpleQueue, steps: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=count)
    torch.manual_seed(0)
    recipe = frcnn.recipe("small_r18_fpn")
    model = FasterRCNN(recipe.model, recipe.data).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, fused=True)
    boxes, labels = torch.tensor([[20.0, 20.0, 90.0, 100.0]]), torch.zeros(1, dtype=torch.long)
    batch = Batch(torch.randn(1, 3, 256, 256), ((256, 256),), (boxes,), (labels,), seed=0)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flat, parallel = torch.zeros(size), DistributedDataParallel(model)
    took: dict[str, list[float]] = {name: [] for name in ("forward", "backward", "optimizer", "sum", "step")}
    for _ in range(steps):
        distributed.barrier()
        marks = [time.perf_counter()]
        with parallel.no_sync():
            loss = sum(parallel(batch).values())
            marks.append(time.perf_counter())
            loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        marks.append(time.perf_counter())
        distributed.barrier()
        marks.append(time.perf_counter())
        distributed.all_reduce(flat)
        marks.append(time.perf_counter())
        optimizer.zero_grad()
        distributed.barrier()
        began = time.perf_counter()
        sum(parallel(batch).values()).backward()
        optimizer.step()
        took["step"].append(time.perf_counter() - began)
        optimizer.zero_grad()
        for name, a, b in zip(
            ("forward", "backward", "optimizer", "", "sum"), marks, marks[1:], strict=False
        ):
            took.setdefault(name, []).append(b - a)
    results.put((4 * size, {name: statistics.median(values[2:]) for name, values in took.items()}))
    distributed.barrier()
    distributed.destroy_process_group()


def measure(counts: list[int], steps: int) -> None:
    print("| processes | a step by parts, ms | sum of gradients alone | modeled | measured | ratio |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            results = multiprocessing.get_context("spawn").SimpleQueue()
            arguments = (count, os.path.join(folder, "store"), results, steps)
            multiprocessing.spawn(process, arguments, nprocs=count)
            found = [results.get() for _ in range(count)]
        size = found[0][0]
        mean = {name: statistics.mean(one[1][name] for one in found) for name in found[0][1]}
        step = Step(mean["forward"], mean["backward"], mean["optimizer"], size)
        link = Link(1e30) if count == 1 else Link(2 * (count - 1) / count * size / mean["sum"], 0)
        modeled = seconds(step, [link], [count])
        parts = " + ".join(f"{1000 * mean[name]:.0f}" for name in ("forward", "backward", "optimizer"))
        print(
            f"| {count} | {parts} | {1000 * mean['sum']:.0f} ms | {1000 * modeled:.0f} ms | "
            f"{1000 * mean['step']:.0f} ms | {mean['step'] / modeled:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=int, nargs="+", help="numbers of processes to run here")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.steps)
    else:
        table()
