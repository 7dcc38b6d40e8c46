"""Fast inference: a frozen detector in a chosen precision, run eagerly, compiled, or as CUDA graphs.

fast = model.optimize(precision="bfloat16")
for found in fast.stream(sorted(folder.glob("*.jpg")), batch_size=4): ...
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

import frcnn_ops
from frcnn.detector import FasterRCNN, fingerprint
from frcnn.inference.cuda_graph import GraphCache
from frcnn.inference.fold import Epilogue, fold
from frcnn.inference.hardware import DTYPES, Precision, check_precision, float32_arithmetic, limit_threads
from frcnn.inference.stream import Predictor
from frcnn.structures import Batch, Detections

Mode = Literal["eager", "compiled", "graph"]


class CompiledByShape:
    """A function that torch.compile compiles anew for each combination of input shapes, however many.

    Threads may share it. The first call of a shape is made alone: several at once would all compile, and
    torch gives up at a function's ninth version unless told otherwise.
    """

    _compiling = threading.Lock()  # one for all, as torch's limit is one for all
    _limits: ClassVar = {"recompile_limit": 2**16, "accumulated_recompile_limit": 2**16}

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]):
        self._call = torch.compile(function, fullgraph=True, dynamic=False)
        self._seen: set[tuple] = set()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        key = (torch.is_inference_mode_enabled(), *((x.shape, x.stride(), x.dtype) for x in inputs))
        if key in self._seen:
            return self._call(*inputs)
        with self._compiling, torch._dynamo.config.patch(self._limits):
            outputs = self._call(*inputs)
        self._seen.add(key)
        return outputs


class FastDetector(Predictor):
    """A frozen copy of a model that only detects; `FasterRCNN.optimize` makes one.

    It answers `predict`, `stream` and `detect` as the model does. The model may be changed, trained or
    deleted afterward: nothing is shared.

    precision: "float32"; "tf32" (CUDA: float32 whose products round their factors to 10 bits); "bfloat16" or
        "float16" (features and weights; boxes, scores and accumulators stay float32).
    mode: "eager"; "compiled" (torch.compile, first call of each input shape slow); "graph" (CUDA: one graph
        per input shape, the most recent 8 kept).
    few_shapes: pad images to at most 8 shapes (`frcnn.inference.shapes`), and fill up smaller batches, so
        that a data set needs at most 8 graphs or compilations for each batch size. A convolution sees what
        lies beside an image's border, so detections near it change a little, as they do where MMDetection
        pads an image to the largest of its batch; without it, they do not depend on anything else.
    epilogue: as `frcnn.inference.fold.Epilogue` says, on a GPU; mode "compiled" fuses by itself.
    """

    def __init__(
        self,
        model: FasterRCNN,
        precision: Precision = "float32",
        mode: Mode = "eager",
        few_shapes: bool = False,
        epilogue: Epilogue = "product",
    ):
        self.config, self.data, self.class_names = model.config, model.data, model.class_names
        self.precision, self.mode, self.few_shapes = precision, mode, few_shapes
        check_precision(precision, model.device)
        if mode not in ("eager", "compiled", "graph"):
            raise ValueError(f"unknown mode {mode!r}: choose eager, compiled or graph")
        if mode == "graph" and model.device.type != "cuda":
            raise ValueError(
                f'mode="graph" captures CUDA graphs, but the model is on {model.device}: move it to a GPU'
            )
        self._network = fold(model, DTYPES[precision], mode != "compiled", epilogue)
        wrapped = {"eager": lambda function: function, "compiled": CompiledByShape, "graph": GraphCache}
        self._detect_padded = wrapped[mode](self._network.detect_padded)
        if self.device.type == "cpu":
            limit_threads()

    def __repr__(self) -> str:
        return f"FastDetector({self.precision}, {self.mode}, {self.device})"

    @property
    def device(self) -> torch.device:
        return self._network.device

    def fingerprint(self) -> str:
        """Equal for detectors of equal weights, configuration and precision."""
        return fingerprint(self._network, self.config, self.data, self.class_names, self.precision)

    def __call__(self, batch: Batch) -> list[Detections]:
        """Detections of each image, boxes in pixels of the network's input."""
        return self.detect(batch, [(1.0, 1.0)] * len(batch.sizes))

    def _run(self, images: Tensor, sizes: Tensor, scales: Tensor, details: bool) -> tuple[Tensor, ...]:
        with float32_arithmetic(self.precision, self.device):
            if details:  # asked for seldom: neither compiled nor captured
                return self._network.detect_padded(images, sizes, scales, details)
            return self._detect_padded(images, sizes, scales)


class Agreement(NamedTuple):
    """How far two sets of detections of the same images are apart."""

    matched: float
    """Matched pairs, divided by the larger set's size (1 where both are empty)."""
    max_score_drift: float
    mean_score_drift: float
    max_box_drift: float
    """In pixels, over the coordinates of the matched boxes."""
    mean_box_drift: float
    detections: tuple[int, int]


def compare_detections(
    a: Detections | Sequence[Detections], b: Detections | Sequence[Detections], min_iou: float = 0.5
) -> Agreement:
    """Match the detections of the same images, as computed in two ways, one to one.

    Best first, each detection of `a` takes the detection of `b` that overlaps it most among those of its
    class that are still free, if their IoU is at least min_iou.
    """
    a, b = ([found] if isinstance(found, Detections) else list(found) for found in (a, b))
    if len(a) != len(b):
        raise ValueError(f"cannot compare detections of {len(a)} images with those of {len(b)}")
    scores, boxes = [], []
    for left, right in zip(a, b, strict=True):
        overlap = frcnn_ops.box_iou(left.boxes, right.boxes)
        overlap = overlap.masked_fill(left.labels[:, None] != right.labels, -1.0)
        for index in range(len(left) if len(right) else 0):
            iou, match = overlap[index].max(0)
            if iou >= min_iou:
                overlap[:, match] = -1.0
                scores.append((left.scores[index] - right.scores[match]).abs())
                boxes.append((left.boxes[index] - right.boxes[match]).abs())
    counts = sum(map(len, a)), sum(map(len, b))
    score = torch.stack(scores) if scores else torch.zeros(1)
    box = torch.stack(boxes) if boxes else torch.zeros(1)
    return Agreement(
        matched=len(scores) / max(counts) if max(counts) else 1.0,
        max_score_drift=score.max().item(),
        mean_score_drift=score.mean().item(),
        max_box_drift=box.max().item(),
        mean_box_drift=box.mean().item(),
        detections=counts,
    )
