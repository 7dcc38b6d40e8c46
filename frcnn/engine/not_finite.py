"""What went into a training step whose loss or gradient is NaN or infinite."""

from __future__ import annotations

import json
import math
from pathlib import Path

from torch import nn

from frcnn.engine.unread import Step
from frcnn.files import replace_text


class NonFiniteLoss(ArithmeticError):
    """A loss or a gradient is NaN or infinite. The weights and the checkpoints are those before the step."""


def not_finite(file: Path, step: Step, model: nn.Module) -> NonFiniteLoss:
    """Write a step's losses, images, boxes and bad gradients to a JSON file; returns the error to raise."""
    values, _ = step.numbers.read()
    culprits = [name for name, value in values.items() if not math.isfinite(value)]
    # what has a gradient now had one then
    learned = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    evidence = {
        "iteration": step.iteration,
        "lr": step.lr,
        "values": {name: str(value) for name, value in values.items()},
        "parameters_with_bad_gradients": [
            name
            for name, norm in zip(learned, step.numbers.gradient_norms.tolist(), strict=True)
            if not math.isfinite(norm)
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
                step.images, step.sizes, step.boxes, step.labels, strict=True
            )
        ],
    }
    replace_text(file, json.dumps(evidence, indent=2) + "\n")
    files = ", ".join(str(path) for path, _ in step.images)
    what = ", ".join(culprits) or "a value of another process"
    return NonFiniteLoss(
        f"step {step.iteration}: {what} not finite, at lr {step.lr:.3g}, on {files}. The step was not taken; "
        f"{file} has its losses and boxes. Look at the boxes of these images; if they are sound, lower "
        "schedule.lr, lengthen the warm-up or set schedule.clip_grad_norm"
    )
