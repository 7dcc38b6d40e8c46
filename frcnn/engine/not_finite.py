"""What went into a training step whose loss or gradient is NaN or infinite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import nn

from frcnn.files import replace_text
from frcnn.structures import Batch


class NonFiniteLoss(ArithmeticError):
    """A loss or a gradient is NaN or infinite. The weights and the checkpoints are those before the step."""


def not_finite(
    file: Path,
    iteration: int,
    lr: float,
    values: dict[str, float],
    images: list[tuple[Path, int]],
    batch: Batch,
    model: nn.Module,
) -> NonFiniteLoss:
    """Write the step's losses, images, boxes and bad gradients to a JSON file; returns the error to raise.

    values: losses and other watched numbers by name; images: file and image id of each image of the batch.
    """
    culprits = [name for name, value in values.items() if not math.isfinite(value)]
    evidence = {
        "iteration": iteration,
        "lr": lr,
        "values": {name: str(value) for name, value in values.items()},
        "parameters_with_bad_gradients": [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ],
        "images": [
            {
                "file": str(path),
                "image_id": image_id,
                "network_input_size": list(size),
                "boxes": boxes.tolist(),
                "labels": labels.tolist(),
            }
            for (path, image_id), size, boxes, labels in zip(
                images, batch.sizes, batch.boxes, batch.labels, strict=True
            )
        ],
    }
    replace_text(file, json.dumps(evidence, indent=2) + "\n")
    files = ", ".join(str(path) for path, _ in images)
    what = ", ".join(culprits) or "a value of another process"
    return NonFiniteLoss(
        f"step {iteration}: {what} not finite, at lr {lr:.3g}, on {files}. The step was not taken; {file} "
        "has its losses and boxes. Look at the boxes of these images; if they are sound, lower "
        "schedule.lr, lengthen the warm-up or set schedule.clip_grad_norm"
    )
