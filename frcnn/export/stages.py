"""Where an exported file that fails begins to differ: the outputs of its stages beside the model's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from frcnn.detector import FasterRCNN
from frcnn.export.formats import Calibration, write
from frcnn.export.info import OUTPUTS, SUFFIXES, ExportInfo
from frcnn.export.program import ExportedForm, exported_program, stage_names
from frcnn.runtime import load


def stage_errors(
    model: FasterRCNN,
    info: ExportInfo,
    inputs: tuple[Tensor, Tensor, Tensor],
    folder: Path,
    calibration: Calibration,
) -> dict[str, float]:
    """Each stage -> its largest difference from the model's, relative to the model's largest magnitude.

    A file that returns its stages is written to the folder for this. Proposals are compared row by row, so
    that two which changed places count as different.
    """
    written = folder / f"stages{SUFFIXES[info.format]}"
    write(exported_program(model, info, stages=True), written, info, calibration)
    detector = load(written, run_code=True)
    theirs = detector.outputs(*inputs)[len(OUTPUTS) :]
    with torch.no_grad():
        ours = ExportedForm(model, stages=True)(*inputs)[len(OUTPUTS) :]
    names = stage_names(len(model.config.strides))
    return {
        name: ((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item()
        for name, a, b in zip(names, ours, theirs, strict=True)
    }
