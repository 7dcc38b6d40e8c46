"""What flows through the detector: a batch of images with their boxes, and detections.

Shape shorthand: B images, G boxes of one image, I ignored boxes, N detections. Boxes are float32
(x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The network's input.

    images: [B, 3, H, W] float32, normalised and zero-padded at the right and the bottom.
    sizes: per image its (height, width) before padding.
    boxes, labels: per image [G, 4] and int64 [G], in pixels of the network's input (training only).
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    boxes: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            move(self.images), self.sizes, tuple(map(move, self.boxes)), tuple(map(move, self.labels))
        )

    def pin_memory(self) -> Batch:
        return Batch(
            self.images.pin_memory(),
            self.sizes,
            tuple(boxes.pin_memory() for boxes in self.boxes),
            tuple(labels.pin_memory() for labels in self.labels),
        )


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first.

    boxes: [N, 4] in pixels of the original image; scores: [N] in 0…1; labels: int64 [N], an index into
    class_names (which is empty when the checkpoint named no classes).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.boxes)

    def name(self, label: int) -> str:
        """The class's name, or its number where names are unknown."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def above(self, score: float) -> Detections:
        """The detections with at least this score."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.class_names)

    def to(self, device: torch.device | str) -> Detections:
        return Detections(
            self.boxes.to(device), self.scores.to(device), self.labels.to(device), self.class_names
        )

    def to_json(self) -> list[dict]:
        """One plain dict per detection: label, name, score, box (x1, y1, x2, y2 in pixels)."""
        return [
            {"label": label, "name": self.name(label), "score": score, "box": box}
            for box, score, label in zip(
                self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
            )
        ]

    def draw(self, image: np.ndarray, min_score: float = 0.3) -> np.ndarray:
        """A copy of the HWC uint8 BGR image with boxes, names and scores drawn on it."""
        from frcnn.draw import draw_boxes

        shown = self.above(min_score).to("cpu")
        captions: Sequence[str] = [
            f"{self.name(label)} {score:.2f}"
            for label, score in zip(shown.labels.tolist(), shown.scores.tolist(), strict=True)
        ]
        return draw_boxes(image, shown.boxes.numpy(), shown.labels.tolist(), captions)
