"""The graph that is exported: pixels in, padded detections out, traced by torch.export.

    images   uint8 [B, H, W, C] (BGR), resized, each at the top left of zeros
    sizes    float32 [B, 2], (height, width) of each image without the zeros
    scales   float32 [B, 2], (x, y) factors of the resize, which boxes are divided by

    boxes    float32 [B, D, 4], x1 y1 x2 y2 in pixels of the original images, best first
    scores   float32 [B, D], 0 where unused
    labels   int64 [B, D], -1 where unused
    counts   int64 [B], detections of each image

Normalization and everything after the network is inside; reading and resizing an image is not, as no format
has cv2's resize (`frcnn.runtime` does it).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from frcnn.detector import FasterRCNN
from frcnn.export.info import LEAST_SIDE, MOST_BATCH, MOST_SIDE, ExportInfo
from frcnn.inference.fold import fold

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class ExportedForm(nn.Module):
    """A folded network under the inputs and outputs above; with stages, the outputs of its stages too."""

    def __init__(self, network: FasterRCNN, stages: bool = False):
        super().__init__()
        self.network, self.stages = network, stages

    def forward(self, images: Tensor, sizes: Tensor, scales: Tensor) -> tuple[Tensor, ...]:
        if not self.stages:
            return self.network.detect_padded(images, sizes, scales)
        model = self.network
        features, logits, deltas = model.score_anchors(images, sizes)
        proposals, scores = model.rpn_head.propose(logits, deltas, sizes)
        found = model.roi_head.detect(features, proposals, scores > -torch.inf, sizes, scales)
        return (*found, *(level.float() for level in features), *logits, *deltas, proposals)


def stage_names(levels: int) -> list[str]:
    """What `ExportedForm` returns with stages, after the detections."""
    names = [f"{stage} {level}" for stage in ("features", "logits", "deltas") for level in range(levels)]
    return [*names, "proposals"]


def example(info: ExportInfo) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the file's shape; two images where their number is to stay open."""
    batch = 2 if info.dynamic else info.batch
    return (
        torch.zeros(batch, *info.size, info.data.channels, dtype=torch.uint8),
        torch.tensor([info.size] * batch, dtype=torch.float32),
        torch.ones(batch, 2),
    )


def exported_program(model: FasterRCNN, info: ExportInfo, stages: bool = False) -> ExportedProgram:
    """The model's graph, of torch's operators and those of `frcnn_ops`."""
    dtype = DTYPES["float32" if info.format == "openvino" else info.precision]
    form = ExportedForm(fold(model, dtype, standard=True), stages)
    shapes = None
    if info.dynamic:
        divisor = model.data.pad_divisor
        most = {"min": -(-LEAST_SIDE // divisor), "max": MOST_SIDE // divisor}
        batch = Dim("batch", min=1, max=MOST_BATCH)
        height, width = divisor * Dim("rows", **most), divisor * Dim("columns", **most)
        shapes = ({0: batch, 1: height, 2: width}, {0: batch}, {0: batch})
    with torch.no_grad():
        return torch.export.export(form, example(info), dynamic_shapes=shapes, strict=True)
