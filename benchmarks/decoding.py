"""Images per second and core, from a JPEG file to what a training batch takes: decoded, resized, flipped.

    python benchmarks/decoding.py [--budget 5] [--kinds 640x480 4000x3000]

Whoever is installed takes part: frcnn with and without `DataConfig.reduced_decoding`, cv2, torchvision's and
torchcodec's decoders and DALI's CPU pipeline, all in turns, in one process with one thread. The files lie in
the system's cache. "as cv2's" says whether the decoded pixels are those of cv2.imread, with which MMDetection
reads.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import tyro

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.inputs import generated
from benchmarks.measure import interleave
from frcnn.config import DataConfig
from frcnn.preprocess import fit_size, resize
from frcnn.read_image import read_image

SIZE = DataConfig().size
Decode = Callable[[Path], np.ndarray]


def reduced(path: Path, size: tuple[int, int]) -> np.ndarray:
    return read_image(path, fit_size(*size, SIZE))


def by_torchvision(path: Path) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return decode_jpeg(read_file(str(path)), ImageReadMode.RGB).permute(1, 2, 0).flip(2).numpy()


def by_torchcodec(path: Path) -> np.ndarray:
    from torchcodec.decoders import decode_jpeg

    return decode_jpeg(path).permute(1, 2, 0).flip(2).numpy()


def decoders(size: tuple[int, int]) -> dict[str, Decode]:
    """(height, width) of the images -> those that are installed."""
    found: dict[str, Decode] = {
        "frcnn": read_image,
        "frcnn, reduced_decoding": partial(reduced, size=size),
        "cv2.imread": lambda path: cv2.imread(str(path)),
    }
    if find_spec("torchvision"):
        found["torchvision"] = by_torchvision
    if find_spec("torchcodec"):
        found["torchcodec"] = by_torchcodec
    return found


def with_dali(paths: list[Path], size: tuple[int, int]) -> Callable[[], Any]:
    """A pipeline of DALI's that decodes, resizes and flips one of the images on the CPU at each call."""
    from nvidia.dali import fn, pipeline_def

    rows, columns = fit_size(*size, SIZE)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline():
        content, _ = fn.readers.file(files=[str(path) for path in paths])
        image = fn.decoders.image(content, device="cpu")
        return fn.resize(fn.flip(image), size=(rows, columns), antialias=False)

    made = pipeline()
    made.build()
    return made.run


def processor_seconds(call: Callable[[], Any]) -> float:
    """Of all threads of this process."""
    started = time.process_time()
    call()
    return time.process_time() - started


def measured(paths: list[Path], size: tuple[int, int], budget: float) -> list[tuple[str, float, float, bool]]:
    """(who, decoding alone, and with resizing and flipping, in images per second of one core; whether the
    pixels are cv2's) of images that all have this (height, width)."""
    rows, reference = [], cv2.imread(str(paths[0]))
    subjects: dict[str, Callable[[], float]] = {}
    turn = {"number": 0}

    def path() -> Path:
        turn["number"] += 1
        return paths[turn["number"] % len(paths)]

    def whole(decode: Decode) -> Any:
        return resize(decode(path()), SIZE)[0][:, ::-1].copy()

    found = decoders(size)
    for name, decode in found.items():
        subjects[name] = partial(processor_seconds, lambda decode=decode: decode(path()))
        subjects[f"{name}: all"] = partial(processor_seconds, partial(whole, decode))
    if find_spec("nvidia") and find_spec("nvidia.dali"):
        subjects["DALI: all"] = partial(processor_seconds, with_dali(paths, size))
    rates = {name: 1 / statistics.median(seconds) for name, seconds in interleave(subjects, budget).items()}
    for name, decode in found.items():
        rows.append((name, rates[name], rates[f"{name}: all"], np.array_equal(decode(paths[0]), reference)))
    if "DALI: all" in rates:
        rows.append(("DALI", float("nan"), rates["DALI: all"], False))
    return rows


def main(
    kinds: tuple[str, ...] = ("640x480", "1920x1080", "4000x3000"),
    count: int = 4,
    quality: int = 92,
    budget: float = 10,
) -> None:
    """Print a table for each kind of image.

    Args:
        kinds: Widths and heights of the images, which are generated.
        count: Images of each kind.
        quality: Of the JPEG files.
        budget: Seconds for each kind.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for kind in kinds:
        width, height = map(int, kind.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.jpg" for number in range(count)]
            for number, path in enumerate(paths):
                cv2.imwrite(str(path), generated(height, width, number), [cv2.IMWRITE_JPEG_QUALITY, quality])
            megabytes = sum(path.stat().st_size for path in paths) / count / 1e6
            print(f"\n{kind}, {megabytes:.2f} MB a file, made to fit {SIZE}\n")
            print("| | decoding, images/s | with resizing and flipping | as cv2's |\n|---|---:|---:|---|")
            for name, decoding, whole, same in measured(paths, (height, width), budget):
                alone = "" if math.isnan(decoding) else f"{decoding:.1f}"
                print(f"| {name} | {alone} | {whole:.1f} | {'yes' if same else 'no'} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
