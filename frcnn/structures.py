"""What flows through the detector: a batch of images with their boxes, and detections.

Shape shorthand: B images, G boxes of one image, N detections, C classes. Boxes are float32 (x1, y1, x2, y2)
in pixels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from frcnn.checked import check_known

if TYPE_CHECKING:
    import pandas
    import supervision

    from frcnn.as_pixels import Image

CLASSES_SHOWN = 8
"""By the repr."""


def upload(numbers: Sequence[Any] | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor, or one of Python numbers, on a device; a GPU does not wait for it."""
    tensor = torch.as_tensor(numbers, dtype=dtype)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Download:
    """Tensors on their way to the host, from a GPU without waiting for them: the opposite of `upload`."""

    def __init__(self, *tensors: Tensor):
        self._on_host = tensors
        self._ready: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            on_host = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors]
            self._on_host = tuple(
                host.copy_(x, non_blocking=True) for host, x in zip(on_host, tensors, strict=True)
            )
            self._ready = torch.cuda.Event()
            self._ready.record()

    def is_there(self) -> bool:
        return self._ready is None or self._ready.query()

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors on the host, when they are there."""
        if self._ready is not None and not self._ready.query():
            self._ready.synchronize()
        return self._on_host


@dataclass(frozen=True)
class Batch:
    """The network's input.

    images: [B, C, H, W] float32, normalized and zero-padded at the right and the bottom; or uint8
    [B, H, W, C] (BGR), zero-padded, which the network normalizes.
    sizes: per image its (height, width) before padding.
    boxes, labels: per image [G, 4] and int64 [G], in pixels of the network's input (training only).
    seed: of the anchors and proposals that are sampled (training only); None takes torch's random numbers.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    boxes: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()
    seed: int | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The images there; the annotations stay, and training brings them over in one piece."""
        return replace(self, images=self.images.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return replace(self, images=self.images.pin_memory())


class Detection(NamedTuple):
    """One detection in plain values."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the original image."""
    score: float
    label: int
    name: str


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """Detections of one image, best first; a detector's are on the host, whatever computed them.

    `len(found)`, `for box, score, label, name in found`, `found[0]`: each a `Detection`. `found[:10]`,
    `found[found.labels == 2]`, `found[[3, 1]]`: Detections again.

    boxes: float32 [N, 4], x1, y1, x2, y2 in pixels of the original image; scores: float32 [N] in 0…1;
    labels: int64 [N], an index into class_names (which is empty when the checkpoint named no classes).
    probabilities: float32 [N, C + 1], of every class and, last, of background; None unless asked for.
    features: float32 [N, F], what the class layer saw of the box, F = roi_head.fc_channels; None unless asked
    for. Both belong to the proposal that the box was refined from.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...] = ()
    probabilities: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, label in zip(
            self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
        ):
            yield Detection(tuple(box), score, label, self.name(label))

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(
        self, index: slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]
    ) -> Detections: ...
    def __getitem__(self, index):
        """One Detection at an integer; Detections at a slice, a bool mask [N] or integers in any order.

        Raises IndexError beyond the end, for a mask of another length and for an index of another kind.
        """
        if isinstance(index, slice):
            index = list(range(len(self)))[index]
        if np.ndim(index) == 0:
            position = range(len(self))[operator.index(index)]
            return next(iter(self._each(lambda field: field[position : position + 1])))
        index = torch.as_tensor(index, device=self.boxes.device)
        index = index if index.numel() else index.bool() if len(self) == 0 else index.long()
        return self._each(lambda field: field[index])

    def __repr__(self) -> str:
        """Counts of the classes with their best scores, best class first."""
        best: dict[str, list[float]] = {}
        for found in self:
            best.setdefault(found.name, []).append(found.score)
        shown = [f"{len(scores)} {name} ({max(scores):.2f})" for name, scores in best.items()]
        more = [f"{len(shown) - CLASSES_SHOWN} more classes"] if len(shown) > CLASSES_SHOWN else []
        return f"<{len(self)} detections{': ' if shown else ''}{', '.join(shown[:CLASSES_SHOWN] + more)}>"

    def name(self, label: int) -> str:
        """The class's name, or its number where names are unknown."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def above(self, score: float) -> Detections:
        """The detections with at least this score."""
        return self[self.scores >= score]

    def of(self, *names: str) -> Detections:
        """The detections of these classes. Raises ValueError for a name that is none of class_names."""
        check_known("class", names, self.class_names)
        labels = [self.class_names.index(name) for name in names]
        return self[torch.isin(self.labels, torch.tensor(labels, device=self.labels.device))]

    def to(self, device: torch.device | str) -> Detections:
        return self._each(lambda field: field.to(device))

    def to_numpy(self) -> dict[str, np.ndarray]:
        """boxes, scores and labels, and probabilities and features where they are there, as arrays."""
        return {name: field.cpu().numpy() for name, field in self._fields().items()}

    def to_json(self) -> list[dict[str, Any]]:
        """One plain dict per detection: label, name, score, box (x1, y1, x2, y2 in pixels)."""
        return [
            {"label": found.label, "name": found.name, "score": found.score, "box": list(found.box)}
            for found in self
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """A row per detection: x1, y1, x2, y2, score, label, name. Raises ImportError without pandas."""
        rows = [(*found.box, found.score, found.label, found.name) for found in self]
        columns = ["x1", "y1", "x2", "y2", "score", "label", "name"]
        return _optional("pandas").DataFrame(rows, columns=columns)

    def to_supervision(self) -> supervision.Detections:
        """As supervision's Detections, with the names under data["class_name"]. Raises ImportError without
        supervision."""
        arrays = self.to_numpy()
        names = np.array([found.name for found in self], dtype=str)
        return _optional("supervision").Detections(
            xyxy=arrays["boxes"],
            confidence=arrays["scores"],
            class_id=arrays["labels"],
            data={"class_name": names},
        )

    def crops(self, image: Image, rgb: bool = False) -> list[np.ndarray]:
        """What is inside each box, HWC uint8 BGR: every pixel that the box touches, at least one.

        image: the original, of any kind that `predict` takes; of more than three channels, the first three.
        rgb: its array is RGB.
        """
        from frcnn.as_pixels import visible

        pixels = visible(image, rgb)
        height, width = pixels.shape[:2]
        crops = []
        for (x1, y1, x2, y2), *_ in self:
            left, top = min(max(math.floor(x1), 0), width - 1), min(max(math.floor(y1), 0), height - 1)
            right, bottom = max(math.ceil(x2), left + 1), max(math.ceil(y2), top + 1)
            crops.append(pixels[top:bottom, left:right].copy())
        return crops

    def draw(self, image: Image, min_score: float = 0.3, rgb: bool = False) -> np.ndarray:
        """A copy of the image, HWC uint8 BGR, with boxes, names and scores drawn on it.

        image: the original, of any kind that `predict` takes; of more than three channels, the first three.
        rgb: its array is RGB.
        """
        from frcnn.as_pixels import visible
        from frcnn.draw import draw_boxes

        shown = self.above(min_score).to("cpu")
        captions = [f"{found.name}: {found.score:.2f}" for found in shown]
        return draw_boxes(visible(image, rgb), shown.boxes.numpy(), shown.labels.tolist(), captions)

    def _fields(self) -> dict[str, Tensor]:
        names = ("boxes", "scores", "labels", "probabilities", "features")
        return {name: field for name in names if (field := getattr(self, name)) is not None}

    def _each(self, change: Callable[[Tensor], Tensor]) -> Detections:
        """These with every field changed alike."""
        changed = {name: change(field) for name, field in self._fields().items()}
        return replace(self, **changed)  # type: ignore[arg-type]


def _optional(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"Detections.to_{package} needs the package {package}: pip install {package}, or frcnn with its "
            f"extra {package} ({error})"
        ) from error
