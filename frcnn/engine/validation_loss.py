"""The losses of a model on images that it does not train on."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from frcnn.checked import OptionError
from frcnn.data import CocoDataset
from frcnn.data.augment import as_sample, fitted
from frcnn.detector import FasterRCNN, evaluating
from frcnn.inference.hardware import float32_arithmetic
from frcnn.inference.stream import Predictor
from frcnn.preprocess import Prepared, pad_pixels
from frcnn.structures import Batch


class ValidationLosses:
    """The losses of the images that training would take (those with a box, and not too small), one by one.

    The norms use their running statistics and no image is augmented; anchors and proposals are assigned and
    sampled as in training, by a seed that is the image's index. So an image's losses depend on it and
    the weights alone, on a CPU to the bit, and the random state of torch is neither used nor changed.

    category_ids: as `match_classes` returns it. Raises OptionError for a model that only detects,
    DatasetError for a data set without an image to train on.
    """

    def __init__(self, model: Predictor, dataset: CocoDataset, category_ids: tuple[int, ...]):
        if not isinstance(model, FasterRCNN):
            raise OptionError("losses=True needs the model itself: what its optimize returns only detects")
        self.model = model
        self.dataset = dataset
        counted = dataset.for_training(model.data.min_image_side, model.data.keep_empty)
        self.counted = set(counted.image_ids.tolist())
        self.label_of = np.array([category_ids.index(category) for category in dataset.category_ids])
        self.names: list[str] = []
        self.rows: list[Tensor] = []

    def add(self, index: int, image: Prepared) -> None:
        """Compute the losses of an image of the data set."""
        if int(self.dataset.image_ids[index]) not in self.counted:
            return
        device, data = self.model.device, self.model.data
        boxes, labels = self.dataset.boxes_of(index, self.model.config.ignore_iof > 0)
        boxes = fitted(boxes, image.scale, image.size)
        labels = np.where(labels < 0, -1, self.label_of[labels])
        sample = as_sample(image.pixels, boxes, labels)
        pixels = pad_pixels(sample[:1], data.pad_divisor)
        batch = Batch(pixels, (image.size,), sample[1:2], sample[2:], seed=index).to(device)
        with torch.no_grad(), evaluating(self.model), float32_arithmetic("float32", device):
            losses, _ = self.model.losses(batch)
        row = torch.stack([*losses.values()])
        self.names = [*losses, "loss"]
        self.rows.append(torch.cat([row, row.sum(0, keepdim=True)]))

    def values(self) -> dict[str, list[float]]:
        """Every loss, and their sum `loss`, of every image so far."""
        return dict(zip(self.names, torch.stack(self.rows).T.tolist(), strict=True)) if self.rows else {}


def means(parts: Iterable[dict[str, list[float]]]) -> dict[str, float]:
    """The mean of every loss over the images of all parts, the same to the bit however they are divided."""
    together: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.items():
            together.setdefault(name, []).extend(values)
    return {name: math.fsum(values) / len(values) for name, values in together.items()}
