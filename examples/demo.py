"""The whole way in one script: data -> training -> evaluation -> drawn detections, on a CPU in a few minutes.

    python examples/demo.py [--output demo] [--images 700]

It makes a data set in COCO format from real handwritten digits, trains the recipe small_r18_fpn on it from
scratch, evaluates it on images with digits that it never saw, and writes images with their detections, curves
and a summary.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro

import frcnn
from frcnn.config import Recipe
from frcnn.engine.evaluate import Evaluation
from frcnn.engine.log import duration
from frcnn.engine.train import TrainResult
from frcnn.zoo.build import load

try:
    import matplotlib.pyplot as plt
    from digits import write_digits
except ImportError as error:
    sys.exit(
        "examples/demo.py needs matplotlib and scikit-learn: pip install matplotlib scikit-learn, or frcnn "
        f"with its extra demo ({error})"
    )
plt.switch_backend("Agg")  # files only

HELD_OUT_IMAGES = 150
DRAWN_FROM = 0.5
"""Lowest score of what is drawn."""

SHEET_COLUMNS, SHEET_ROWS, TILE = 4, 3, (384, 384)


def demo(output: Path = Path("demo"), images: int = 700) -> None:
    """Train and evaluate a small Faster R-CNN on handwritten digits.

    Args:
        output: Folder for everything; what an earlier demo left there is replaced.
        images: To train on, at least one. Few are quick, and teach little.
    """
    if images < 1:
        sys.exit(f"examples/demo.py: --images {images}: at least one is needed to train on")
    for name in ("data", "run", "drawn"):
        shutil.rmtree(output / name, ignore_errors=True)
    data, run, drawn = output / "data", output / "run", output / "drawn"

    step("1/4", f"{images} training and {HELD_OUT_IMAGES} held-out images of handwritten digits")
    files = write_digits(data, images, HELD_OUT_IMAGES)

    step("2/4", "training a Faster R-CNN with an R-18-FPN from scratch")
    started = time.perf_counter()
    result = frcnn.train(
        digits_recipe(),
        files["train"],
        data / "images",
        files["held_out"],
        data / "images",
        work_dir=run,
        workers=1,
        eval_every=2,
        log_every=44,
    )
    seconds = time.perf_counter() - started

    step("3/4", "evaluating the best checkpoint on the held-out images")
    model = load(result.best)
    evaluation = frcnn.evaluate(
        model, files["held_out"], data / "images", batch_size=4, output=output / "detections.json"
    )
    print(evaluation.table())

    step("4/4", "drawing what it finds")
    draw_detections(model, sorted((data / "images").glob("held_out_*.jpg")), drawn)
    draw_curves(run / "log.jsonl", output / "curves.png")
    (output / "summary.md").write_text(summary(evaluation, result, seconds))
    print(farewell(output, result, evaluation, seconds))


def digits_recipe() -> Recipe:
    """small_r18_fpn for yet smaller images, and without flips: a mirrored digit is none."""
    recipe = frcnn.recipe("small_r18_fpn")
    return replace(
        recipe,
        name="digits_r18_fpn",
        data=replace(recipe.data, size=(192, 144), train_short_sides=(144,), flip=0.0),
        schedule=replace(recipe.schedule, epochs=7, decay_epochs=(5, 6)),
    )


def draw_detections(model: frcnn.FasterRCNN, images: list[Path], folder: Path) -> None:
    """The first held-out images with their detections, each on its own and all on one sheet."""
    folder.mkdir(parents=True)
    tiles = []
    for path in images[: SHEET_COLUMNS * SHEET_ROWS]:
        found = model.predict(path)
        # enlarged before drawing, so that captions stay small beside the digits
        image = cv2.imread(str(path))
        scale = min(TILE[0] / image.shape[1], TILE[1] / image.shape[0])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        drawn = replace(found, boxes=found.boxes * scale).draw(image, min_score=DRAWN_FROM)
        cv2.imwrite(str(folder / path.name), drawn)
        tile = np.full((*TILE[::-1], 3), 255, dtype=np.uint8)
        top, left = (TILE[1] - drawn.shape[0]) // 2, (TILE[0] - drawn.shape[1]) // 2
        tile[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
        tiles.append(cv2.copyMakeBorder(tile, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    rows = [np.hstack(tiles[i : i + SHEET_COLUMNS]) for i in range(0, len(tiles), SHEET_COLUMNS)]
    cv2.imwrite(str(folder.parent / "contact_sheet.jpg"), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])


def draw_curves(log: Path, file: Path) -> None:
    """Losses, learning rate and AP over the epochs, from training's log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    training = [line for line in lines if line["mode"] == "train"]
    validation = [line for line in lines if line["mode"] == "val"]
    steps = max(line["iter"] for line in training)
    epochs = [line["epoch"] - 1 + line["iter"] / steps for line in training]
    figure, (losses, rate, quality) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for name in ("loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"):
        losses.plot(
            epochs, [line[name] for line in training], label=name, linewidth=2 if name == "loss" else 1
        )
    losses.set(title="training losses", xlabel="epoch", ylim=(0, None))
    losses.legend()
    rate.step(epochs, [line["lr"] for line in training])  # a line's rate is that of the steps before it
    rate.set(title="learning rate", xlabel="epoch", yscale="log")
    for name, label in (("bbox_mAP_50", "AP50"), ("bbox_mAP_75", "AP75"), ("bbox_mAP", "AP")):
        points = [(line["epoch"], line[name]) for line in validation]
        quality.plot(*zip(*points, strict=True), marker="o", label=label)
    quality.set(title="held-out images", xlabel="epoch", ylim=(0, 1))
    quality.legend(loc="lower right")
    for axes in (losses, rate, quality):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def summary(evaluation: Evaluation, result: TrainResult, seconds: float) -> str:
    """The demo's results in Markdown."""
    metrics = evaluation.metrics
    lines = [
        "# Handwritten digits, detected",
        "",
        f"Trained from scratch in {duration(seconds)} (evaluations included) on {platform.machine()} with "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}.",
        "",
        "| AP | AP50 | AP75 | AR100 |",
        "|---|---|---|---|",
        "| "
        + " | ".join(f"{metrics[n]:.3f}" for n in ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75", "bbox_AR_100"))
        + " |",
        "",
        f"COCO metrics on {HELD_OUT_IMAGES} images of digits that training did not see; 1 is best. AP is the",
        "mean precision over all recalls, averaged over the digits and over how well a box must fit (an IoU",
        "of 0.5 to 0.95); AP50 and AP75 ask for 0.5 and for 0.75. AR100 is the share of digits found",
        "among 100 boxes per image, averaged alike.",
        "",
        "| digit | AP | AP50 |",
        "|---|---|---|",
        *(f"| {name} | {ap:.3f} | {ap50:.3f} |" for name, (ap, ap50) in evaluation.per_class.items()),
        "",
        "| epoch | AP | AP50 |",
        "|---|---|---|",
        *(f"| {e['epoch']} | {e['bbox_mAP']:.3f} | {e['bbox_mAP_50']:.3f} |" for e in result.history),
        "",
        "Each box says which digit it is taken for, and its score, which is 1 where the model is sure. Boxes",
        f"with a score below {DRAWN_FROM} are not drawn, but count in AP.",
        "",
        "![detections](contact_sheet.jpg)",
        "",
        "![curves](curves.png)",
    ]
    return "\n".join(lines) + "\n"


def farewell(output: Path, result: TrainResult, evaluation: Evaluation, seconds: float) -> str:
    metrics = evaluation.metrics
    return f"""
AP50 {metrics["bbox_mAP_50"]:.3f}, AP {metrics["bbox_mAP"]:.3f} on held-out images.
Training took {duration(seconds)}.

Look at
  {output / "summary.md"}           the numbers
  {output / "contact_sheet.jpg"}    detections on held-out images (each one in {output / "drawn"})
  {output / "curves.png"}           losses, learning rate, AP
  {result.best}         the trained model
Next
  frcnn detect {output / "data" / "images"} --model {result.best} --output found
  frcnn train small_r18_fpn --train-annotations YOURS.json --train-images IMAGES
  frcnn train --help; frcnn models
(the command lies in the virtual environment: source .venv/bin/activate)"""


def step(number: str, text: str) -> None:
    print(f"\n[{number}] {text}", flush=True)


if __name__ == "__main__":
    tyro.cli(demo)
