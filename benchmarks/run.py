"""Speed and memory of the zoo's recipes beside the published table and torchvision's detector.

    python benchmarks/run.py --quick                                    minutes, small images
    python benchmarks/run.py --recipes faster_rcnn_r50_fpn_1x_coco      one recipe at full size
    python benchmarks/run.py --device cuda --precision bf16 --mode graph
    python benchmarks/run.py --recipes small_r18_fpn --mode export:onnx,openvino
    python benchmarks/run.py --compare before.json after.json

Results go to benchmarks/results/<date>-<machine>/ as JSON, Markdown and a plot.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))

import frcnn
from benchmarks import inputs, machine, report
from benchmarks.compare import compare
from benchmarks.recipe import PEER, TRAINING_BATCH, Conditions, measure_recipe
from benchmarks.start_up import start_up
from benchmarks.worker import Worker, WorkerError
from frcnn.checkpoint.download import checkpoint_addresses
from frcnn.config import Recipe
from frcnn.export.info import SUFFIXES
from frcnn.inference.hardware import available_cpus, check_precision

RESULTS = Path(__file__).resolve().parent / "results"
PRECISIONS = {"float32": "float32", "tf32": "tf32", "bf16": "bfloat16", "fp16": "float16"}
"""The command line's names -> the library's."""


class UsageError(Exception):
    """Something that the person at the command line can put right."""


@dataclass(frozen=True)
class Settings:
    """Benchmark Faster R-CNN against the published table."""

    device: Literal["cpu", "cuda"] | None = None
    """Default: cuda if there is one."""
    precision: Literal["float32", "tf32", "bf16", "fp16"] = "float32"
    mode: str = "eager"
    """eager, compiled, graph, or export:FORMAT[,FORMAT…], which is eager beside files of these formats."""
    batch: tuple[int, ...] = ()
    """Batch sizes of detection; default 1 and 8 on a GPU, 1 on a CPU (8 needs some 10 GB per detector)."""
    size: tuple[int, int] | None = None
    """Height and width of the images; default 800 1333, with --quick 128 224."""
    recipes: tuple[str, ...] = ()
    """Default: all 15."""
    quick: bool = False
    """Small images, few iterations: everything runs once, and the times mean little."""
    images: Path | None = None
    """Folder of images to tile; without it, images are generated."""
    weights: str | None = None
    """A checkpoint, a folder with the published ones, or "coco" to download them; without, generated."""
    coco: Path | None = None
    """Folder with annotations/instances_val2017.json and val2017/, to measure box AP (needs --weights)."""
    peer_python: Path | None = None
    """Interpreter that has torch and torchvision; default: this one, if it has torchvision."""
    train: bool = True
    """Measure the training step too."""
    threads: int | None = None
    """CPU threads, of ours and of the peer; default: all cores that this process may use."""
    seconds: float = 20.0
    """Time for each interleaved measurement; at least 5 rounds are made."""
    output: Path | None = None
    """Folder for the result; default benchmarks/results/<date>-<machine>/."""
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="A.json B.json")] = None
    """Print what changed between two results and do nothing else."""


def main(settings: Settings) -> Path | None:
    """Measure and write; returns the JSON file."""
    if settings.compare is not None:
        try:
            print(compare(*settings.compare))
        except (OSError, ValueError) as error:
            raise UsageError(f"--compare: {error}") from None
        return None
    check_ranges(settings)
    mode, exports = chosen_mode(settings)
    device = chosen_device(settings)
    recipes = chosen_recipes(settings)
    threads = settings.threads or available_cpus()
    default_batches = (1, 8) if device.type == "cuda" and not settings.quick else (1,)
    batches = settings.batch or default_batches
    size = settings.size or ((128, 224) if settings.quick else (800, 1333))
    peers, peer_python, peer_says = chosen_peer(settings)
    described = machine.describe(device, threads)
    print(f"{described['name']}: {described['cpu']}; peer: {peer_says}")

    with tempfile.TemporaryDirectory(prefix="frcnn-benchmark-") as name:
        folder = Path(name)
        images, described_images = write_images(folder, {*batches, TRAINING_BATCH}, size, settings.images)
        conditions = Conditions(
            device=device.type,
            precision=PRECISIONS[settings.precision],
            mode=mode,
            threads=threads,
            size=size,
            images=images,
            batches=batches,
            seconds=1.0 if settings.quick else settings.seconds,
            least=2 if settings.quick else 5,
            train=settings.train and not exports,
            coco=settings.coco,
            exports=exports,
        )
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": described,
            "settings": {"precision": settings.precision, "mode": settings.mode, "size": size}
            | {"batches": batches, "quick": settings.quick, "seconds": conditions.seconds},
            "images": described_images,
            "weights": settings.weights or "generated, calibrated to realistic numbers of detections",
            "peer": peer_says,
            "start_up": start_up(threads),
            "recipes": [],
        }

        def start(module: str) -> Worker:
            return Worker(module, peer_python if module == PEER else sys.executable, threads)

        file = None
        with tqdm(recipes, unit="recipe") as bar:
            try:
                for recipe in bar:

                    def step(what: str, recipe=recipe) -> None:
                        bar.set_description(f"{recipe.name}: {what}")

                    try:
                        weights = checkpoint(recipe, settings.weights)
                        row = measure_recipe(recipe, conditions, peers, start, weights, folder, step)
                    except WorkerError as error:
                        row = {"name": recipe.name, "error": str(error)}
                        tqdm.write(f"{recipe.name} failed: {error}", file=sys.stderr)
                    result["recipes"].append(row)
                    file = write(result, settings.output)  # each time: a long run may be stopped
            except KeyboardInterrupt:
                tqdm.write("stopped; the recipes that were done are kept", file=sys.stderr)
    if file is not None:
        plot = "and .png" if plots() else "(a plot needs matplotlib, of the extra plots)"
        print(f"\n{file.with_suffix('.md').read_text()}\nwritten to {file} and beside it as .md {plot}")
    return file


def check_ranges(settings: Settings) -> None:
    """Before anything is measured."""
    if any(batch < 1 for batch in settings.batch):
        raise UsageError(f"--batch {' '.join(map(str, settings.batch))}: sizes are 1 or more")
    if settings.size is not None and min(settings.size) < 32:
        raise UsageError(f"--size {' '.join(map(str, settings.size))}: sides are 32 pixels or more")
    if settings.threads is not None and settings.threads < 1:
        raise UsageError(f"--threads {settings.threads}: at least 1")
    if not 0 <= settings.seconds < 1e6:
        raise UsageError(f"--seconds {settings.seconds}: 0 or more")


def chosen_mode(settings: Settings) -> tuple[str, tuple[str, ...]]:
    """The mode of ours, and the formats of the exported files beside it."""
    mode, _, formats = settings.mode.partition(":")
    if mode == "export":
        exports = tuple(formats.split(","))
        unfit = [name for name in exports if name not in SUFFIXES or name == "tensorrt"]
        if unfit or settings.precision != "float32" or settings.device == "cuda" or len(settings.batch) > 1:
            raise UsageError(
                f"--mode {settings.mode}: formats are torch, aoti, onnx and openvino; they are measured in "
                "float32 on the CPU, at one batch size"
            )
        return "eager", exports
    if settings.mode not in ("eager", "compiled", "graph"):
        raise UsageError(f"--mode {settings.mode}: eager, compiled, graph or export:FORMAT[,FORMAT…]")
    return mode, ()


def chosen_device(settings: Settings) -> torch.device:
    available = torch.cuda.is_available()
    on_cpu = settings.mode.startswith("export:") or not available
    device = settings.device or ("cpu" if on_cpu else "cuda")
    if device == "cuda" and not available:
        raise UsageError("--device cuda: torch sees no GPU here; use --device cpu")
    if device == "cpu" and settings.mode == "graph":
        raise UsageError("--mode graph captures CUDA graphs; on a CPU use --mode eager or compiled")
    try:
        check_precision(PRECISIONS[settings.precision], torch.device(device))
    except ValueError as error:
        raise UsageError(f"--precision {settings.precision}: {error}") from None
    return torch.device(device)


def chosen_recipes(settings: Settings) -> list[Recipe]:
    try:
        return [frcnn.recipe(name) for name in settings.recipes or frcnn.list_recipes()]
    except KeyError as error:
        raise UsageError(f"--recipes: {error.args[0]}") from None


def chosen_peer(settings: Settings) -> tuple[list[str], Path | str, str]:
    """The precisions that the peer runs in, its interpreter, and who it is (or why there is none)."""
    if settings.peer_python is None and importlib.util.find_spec("torchvision") is None:
        missing = "none: torchvision is not installed here; --peer-python names an interpreter that has it"
        return [], sys.executable, missing
    python = settings.peer_python or sys.executable
    try:
        probe = subprocess.run(
            [
                str(python),
                "-c",
                "import torch, torchvision; print(torchvision.__version__, torch.__version__)",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise UsageError(f"--peer-python {python}: {error.strerror}") from None
    if probe.returncode != 0:
        raise UsageError(f"--peer-python {python} cannot import torchvision:\n{probe.stderr.strip()}")
    version, torch_version = probe.stdout.split()
    precisions = list(dict.fromkeys(["float32", PRECISIONS[settings.precision]]))
    return (
        precisions,
        python,
        f"torchvision {version} (torch {torch_version}), its detector with our weights",
    )


def write_images(
    folder: Path, batches: set[int], size: tuple[int, int], source: Path | None
) -> tuple[dict[int, Path], str]:
    """An .npy file of images for each batch size, and what they are."""
    try:
        made, described = inputs.make_images(max(batches), *size, source)
    except ValueError as error:
        raise UsageError(str(error)) from None
    files = {batch: folder / f"batch{batch}.npy" for batch in batches}
    for batch, file in files.items():
        np.save(file, made[:batch])
    return files, described


def checkpoint(recipe: Recipe, weights: str | None) -> str | None:
    """The checkpoint of a recipe; a folder holds the published ones under their own names."""
    if weights is None or weights == "coco":
        return weights
    path = Path(weights)
    if not path.is_dir():
        return str(path.resolve())
    file = path / Path(recipe.published.checkpoint).name
    if not file.is_file():
        address = checkpoint_addresses(recipe.published.checkpoint)[0]
        raise UsageError(f"--weights {path}: {file.name} is not there; it is published at {address}")
    return str(file.resolve())


def plots() -> bool:
    """Whether there is matplotlib, an extra: without it a result has no plot."""
    return importlib.util.find_spec("matplotlib") is not None


def write(result: dict, output: Path | None) -> Path:
    """JSON, Markdown and, where it can be drawn, plot of a result; returns the JSON file."""
    settings = result["settings"]
    folder = output or RESULTS / f"{result['date']}-{result['machine']['name']}"
    folder.mkdir(parents=True, exist_ok=True)
    mode = settings["mode"].replace(":", "-").replace(",", "-")
    stem = "-".join([settings["precision"], mode, *(["quick"] if settings["quick"] else [])])
    file = folder / f"{stem}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    file.with_suffix(".md").write_text(report.markdown(result))
    if plots():
        report.plot(result, file.with_suffix(".png"))
    return file


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UsageError as error:
        sys.exit(str(error))
