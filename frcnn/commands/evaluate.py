"""`frcnn eval`, alone or under torchrun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from frcnn.checked import OptionError
from frcnn.commands.model import (
    Annotations,
    BatchSize,
    Device,
    Images,
    Model,
    Precision,
    RunCode,
    Views,
    Weights,
    default,
    files_of,
    load_detector,
    load_model,
)
from frcnn.config import ViewConfig
from frcnn.files import check_keeps

if TYPE_CHECKING:
    from frcnn.inference.stream import Predictor


def evaluate(
    model: Positional[Model],
    annotations: Annotations,
    images: Images,
    weights: Weights = None,
    per_class: bool = False,
    losses: bool = False,
    output: Annotated[Path | None, default("FILE", "none")] = None,
    batch_size: BatchSize = 4,
    threads: Annotated[int | None, default("INT", "1 on a CPU, else up to 8")] = None,
    precision: Precision = "float32",
    device: Device = None,
    run_code: RunCode = False,
    views: Views = ViewConfig(),  # noqa: B008
) -> int:
    """Evaluate a model on a data set of COCO's, VOC's or YOLO's format, with pycocotools' numbers.

    Under torchrun each process takes a share of the images, and the first one prints.

    Args:
        per_class: Also print AP and AP50 of every class.
        losses: Also print the losses that training minimizes, by a second forward pass (in float32).
        output: Write the detections to this file, in COCO's results format.
        threads: How many read and resize images.
    """
    from frcnn.data import load_dataset
    from frcnn.engine.distributed import started_processes
    from frcnn.engine.evaluate import check_options, evaluate
    from frcnn.export.info import is_exported

    check_options(batch_size, threads, output)
    check_keeps(files_of(model, weights), output)
    if losses and precision != "float32":
        raise OptionError(f"losses=True computes in float32, so precision={precision} cannot go with it")
    if losses and views != ViewConfig():
        raise OptionError("losses=True is of images as training sees them: leave out the views")
    exported = is_exported(model)  # then it computes on the CPU, whatever there is
    with started_processes("cpu" if exported else device) as (processes, here):
        if processes.count > 1 and not exported:
            device = str(here)
        dataset = load_dataset(annotations, images)
        # what detects fast has no losses
        detector: Predictor
        if losses:
            detector = load_model(model, weights, device)
        else:
            detector = load_detector(model, weights, device, precision, run_code, views)
        result = evaluate(
            detector, dataset, batch_size=batch_size, threads=threads, output=output, losses=losses
        )
        if processes.first:
            print((result if per_class else replace(result, per_class={})).table())
    return 1 if result.failed else 0
