"""Fast inference: a frozen detector in a chosen precision, run eagerly, compiled, or as CUDA graphs.

fast = model.optimize(precision="bfloat16")
for found in fast.stream(sorted(folder.glob("*.jpg")), batch_size=4): ...
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import frcnn_ops
from frcnn.detector import FasterRCNN, fingerprint
from frcnn.inference.cuda_graph import GraphCache
from frcnn.inference.fold import fold
from frcnn.inference.hardware import (
    DTYPES,
    Precision,
    available_cpus,
    check_precision,
    fp32_arithmetic,
    limit_threads,
)
from frcnn.inference.memory import keep_freed_memory
from frcnn.inference.stream import batches_by_key, in_order, one_behind, prepared_ahead
from frcnn.preprocess import (
    Image,
    Prepared,
    as_bgr,
    channels_last,
    check_size,
    fit_size,
    is_one_image,
    naming,
    padded,
    prepare,
)
from frcnn.structures import Batch, Detections

Mode = Literal["eager", "compiled", "graph"]


class Launched(NamedTuple):
    """A batch's padded detections, on its device, while they are perhaps still computed."""

    boxes: Tensor
    """[B, D, 4]"""
    scores: Tensor
    """[B, D]"""
    labels: Tensor
    """int64 [B, D]"""
    counts: Tensor
    """int64 [B], on the host."""
    ready: torch.cuda.Event | None
    """When counts can be read; None if at once."""


class CompiledByShape:
    """A function that torch.compile compiles anew for each combination of input shapes, however many.

    Threads may share it. The first call of a shape is made alone: several at once would all compile, and
    torch gives up at a function's ninth version unless told otherwise.
    """

    _compiling = threading.Lock()  # one for all, as torch's limit is one for all
    _limits: ClassVar = {"recompile_limit": 2**16, "accumulated_recompile_limit": 2**16}

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], backend: str):
        self._call = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
        self._seen: set[tuple] = set()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        key = (torch.is_inference_mode_enabled(), *((x.shape, x.stride(), x.dtype) for x in inputs))
        if key in self._seen:
            return self._call(*inputs)
        with self._compiling, torch._dynamo.config.patch(self._limits):
            outputs = self._call(*inputs)
        self._seen.add(key)
        return outputs


class FastDetector:
    """A frozen copy of a model that only detects; `FasterRCNN.optimize` makes one.

    It answers `predict` and `detect` as the model does. The model may be changed, trained or deleted
    afterwards: nothing is shared.

    precision: "float32"; "tf32" (CUDA: float32 whose products round their factors to 10 bits); "bfloat16" or
        "float16" (features and weights; boxes, scores and accumulators stay float32).
    mode: "eager"; "compiled" (torch.compile, first call of each input shape slow); "graph" (CUDA: one graph
        per input shape, the most recent `graph_capacity` shapes kept).
    compile_backend: of torch.compile, for mode="compiled".
    device_resize: resize on the model's device instead of with cv2, whose fixed-point interpolation it
        follows to within one grey level, not exactly.
    keep_memory: on a CPU, keep freed memory for the next call: faster, but the process stays as large as it
        once was (see `frcnn.inference.memory.keep_freed_memory`).
    """

    def __init__(
        self,
        model: FasterRCNN,
        precision: Precision = "float32",
        mode: Mode = "eager",
        device_resize: bool = False,
        graph_capacity: int = 8,
        compile_backend: str = "inductor",
        keep_memory: bool = False,
    ):
        self.config, self.data, self.class_names = model.config, model.data, model.class_names
        self.device = model.device
        self.precision, self.mode, self.device_resize = precision, mode, device_resize
        check_precision(precision, self.device)
        if mode not in ("eager", "compiled", "graph"):
            raise ValueError(f"unknown mode {mode!r}: choose eager, compiled or graph")
        if mode == "graph" and self.device.type != "cuda":
            raise ValueError(
                f'mode="graph" captures CUDA graphs, but the model is on {self.device}: move it to a GPU'
            )
        self._network = fold(model, DTYPES[precision], fused=mode == "eager")
        detect = self._network.detect_padded
        if mode == "compiled":
            self._run = CompiledByShape(detect, compile_backend)
        elif mode == "graph":
            self._run = GraphCache(detect, graph_capacity)
        else:
            self._run = detect
        if self.device.type == "cpu":
            limit_threads()
            if keep_memory:
                keep_freed_memory()

    def __repr__(self) -> str:
        return f"FastDetector({self.precision}, {self.mode}, {self.device})"

    def fingerprint(self) -> str:
        """Equal for detectors of equal weights, configuration and precision."""
        return fingerprint(self._network, self.config, self.data, self.class_names, self.precision)

    def __call__(self, batch: Batch) -> list[Detections]:
        """Detections of each image, boxes in pixels of the network's input."""
        return self.detect(batch, [(1.0, 1.0)] * len(batch.sizes))

    def detect(self, batch: Batch, scales: Sequence[tuple[float, float]]) -> list[Detections]:
        """Detections of each image, their boxes divided by the image's (x, y) scale."""
        return self._unpad(self._launch(batch.images, batch.sizes, scales))

    def predict(
        self,
        images: Image | Iterable[Image],
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        rgb: bool = False,
    ) -> Detections | list[Detections]:
        """Detect objects in one image or several, as `FasterRCNN.predict` does; threads may share it.

        images: an image, or any number of them; see `frcnn.preprocess.as_bgr`. Arrays are BGR.
        size: (long side, short side) that images are resized to fit, by default the recipe's.
        rgb: arrays and tensors are RGB instead.
        Returns one Detections for one image and a list for several, boxes in pixels of the originals.
        Raises ImageError or TypeError, naming it, for an image that cannot be used.
        """
        if is_one_image(images):
            check_size(size)
            return self._unpad(self._launch_prepared([self._prepare(images, size, rgb)]))[0]
        return list(self.stream(images, size, batch_size, rgb=rgb))

    def stream(
        self,
        images: Iterable[Image],
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        threads: int | None = None,
        rgb: bool = False,
    ) -> Iterator[Detections]:
        """`predict` for any number of images, yielding in their order while later ones are still read.

        Threads decode and resize ahead, and the device is given the next batch before the last one's result
        is awaited. Images that pad to the same shape share a batch, so an image's neighbours do not change
        its result. Memory is bounded, whatever the number of images. An image that cannot be used raises as
        in `predict`, after the results of all images before it; a new stream can go on behind it.
        threads: for decoding; by default one on a CPU device, whose cores the network needs, else up to 8.
        """
        check_size(size)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if threads is None:
            threads = 1 if self.device.type == "cpu" else min(8, available_cpus())

        def prepare(item: tuple[int, Image]) -> Prepared:
            with naming(item[0]):
                return self._prepare(item[1], size, rgb)

        ahead = 2 * max(threads, batch_size)
        return self._stream(prepared_ahead(enumerate(images), prepare, threads, ahead), batch_size)

    def _stream(self, ready: Iterator[Prepared], batch_size: int) -> Iterator[Detections]:
        with closing(ready):  # its threads, also when the stream ends early
            batches = batches_by_key(
                ready, lambda item: item.padded_size, batch_size, patience=8 * batch_size
            )
            yield from in_order(one_behind(map(self._launch_batch, batches)))

    def _launch_batch(self, batch: list[tuple[int, Prepared]]) -> Callable[[], list[tuple[int, Detections]]]:
        positions, images = zip(*batch, strict=True)
        launched = self._launch_prepared(images)
        return lambda: list(zip(positions, self._unpad(launched), strict=True))

    def _prepare(self, image: Image, size: tuple[int, int] | None, rgb: bool) -> Prepared:
        """Read and resize; with device_resize, only read."""
        if not self.device_resize:
            return prepare(image, self.data, size, rgb)
        pixels = channels_last(image) if isinstance(image, Tensor) else None
        if pixels is None or pixels.dtype != torch.uint8 or pixels.shape[2:] != (3,) or rgb:
            pixels = torch.from_numpy(as_bgr(image, rgb))
        height, width = pixels.shape[:2]
        new_size = fit_size(height, width, size or self.data.size)
        scale = (new_size[1] / width, new_size[0] / height)
        return Prepared(pixels, new_size, padded(new_size, self.data.pad_divisor), scale)

    def _launch_prepared(self, batch: Sequence[Prepared]) -> Launched:
        shape = (len(batch), *batch[0].padded_size, 3)
        if self.device_resize:
            pixels = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        else:
            pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for target, item in zip(pixels, batch, strict=True):
            rows, columns = item.size
            if self.device_resize:
                image = item.pixels.to(self.device, non_blocking=True)
                target[:rows, :columns] = resize_bilinear(image, item.size)
            else:
                target[:rows, :columns] = torch.from_numpy(item.pixels)
        return self._launch(pixels, [item.size for item in batch], [item.scale for item in batch])

    @torch.no_grad()
    def _launch(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        scales: Sequence[tuple[float, float]],
    ) -> Launched:
        """Give a batch to the device; on a GPU this does not wait for the result."""
        geometry = torch.tensor([*sizes, *scales], dtype=torch.float32)
        if self.device.type == "cuda":
            images, geometry = images.to(self.device, non_blocking=True), geometry.pin_memory()
        sizes, scales = geometry.to(self.device, non_blocking=True).split(len(images))
        with fp32_arithmetic("tf32" if self.precision == "tf32" else "ieee", self.device):
            *fields, counts = self._run(images, sizes, scales)
        if self.device.type != "cuda":
            return Launched(*fields, counts, ready=None)
        # copied now, so that reading them later does not wait for the batches launched in between
        on_host = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
        on_host.copy_(counts, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return Launched(*fields, on_host, ready)

    def _unpad(self, launched: Launched) -> list[Detections]:
        *fields, counts, ready = launched
        if ready is not None:
            ready.synchronize()
        return [
            Detections(*(field[index, :count] for field in fields), self.class_names)
            for index, count in enumerate(counts.tolist())
        ]


def resize_bilinear(image: Tensor, size: tuple[int, int]) -> Tensor:
    """HWC uint8 -> uint8 of (height, width) `size`: bilinear, pixel centres at half coordinates, rounded.

    cv2.resize does the same with 11-bit weights, so the two can differ by one grey level.
    """
    if tuple(image.shape[:2]) == tuple(size):
        return image
    planes = image.permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return planes[0].permute(1, 2, 0).round().to(torch.uint8)


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
        left, right = left.to("cpu"), right.to("cpu")
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
