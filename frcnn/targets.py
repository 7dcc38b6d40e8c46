"""Which boxes learn what: ground truth as padded tensors, and random sampling of assigned boxes.

Everything here has a fixed size and stays on the device, so a training step never waits for it.
Shape shorthand: B images, G ground-truth boxes of the image that has most, N candidates, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frcnn.structures import upload


@dataclass(frozen=True)
class GroundTruth:
    """The annotated boxes of a batch, padded to the same number per image (at least one).

    boxes [B, G, 4] float32, labels int64 [B, G], counts int64 [B], present bool [B, G].
    """

    boxes: Tensor
    labels: Tensor
    counts: Tensor
    present: Tensor

    @staticmethod
    def pad(boxes: Sequence[Tensor], labels: Sequence[Tensor], device: torch.device) -> GroundTruth:
        images, most = len(boxes), max(1, *(len(image_boxes) for image_boxes in boxes))
        counts = upload([len(image_boxes) for image_boxes in boxes], device)
        padded_boxes = torch.zeros(images, most, 4, device=device)
        padded_labels = torch.zeros(images, most, dtype=torch.long, device=device)
        for index, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
            padded_boxes[index, : len(image_boxes)] = image_boxes
            padded_labels[index, : len(image_labels)] = image_labels
        present = torch.arange(most, device=device) < counts[:, None]
        return GroundTruth(padded_boxes, padded_labels, counts, present)


@dataclass(frozen=True)
class Samples:
    """A random subset of each image's candidates: index int64 [B, S] into them, and what each is.

    positive, negative: bool [B, S]; a slot that is neither is unused.
    """

    index: Tensor
    positive: Tensor
    negative: Tensor

    @property
    def used(self) -> Tensor:
        return self.positive | self.negative

    def average_factor(self) -> Tensor:
        """The number of samples that MMDetection divides by: both kinds count at least one per image."""
        return (self.positive.sum(1).clamp(min=1) + self.negative.sum(1).clamp(min=1)).sum()


def sample(
    gt_index: Tensor, samples: int, pos_fraction: float, generator: torch.Generator | None = None
) -> Samples:
    """Draw up to `samples` candidates per image, of them at most `pos_fraction` positive; negatives fill up.

    gt_index: int64 [B, N] as `frcnn_ops.assign_max_iou` returns it (-1 ignored, 0 negative, > 0 positive).
    generator: of random numbers, on the same device; None takes torch's own.
    """
    slots = min(samples, gt_index.shape[1])
    most_positive = min(int(samples * pos_fraction), gt_index.shape[1])
    draw = torch.rand(gt_index.shape, device=gt_index.device, generator=generator)

    value, index = draw.masked_fill(gt_index <= 0, -1.0).topk(most_positive, dim=1)
    chosen_positive = torch.zeros_like(gt_index, dtype=torch.bool).scatter(1, index, value >= 0)

    # chosen positives come first, then negatives in random order, then candidates that may not be used
    priority = draw.masked_fill(gt_index != 0, -1.0).masked_fill(chosen_positive, 2.0)
    value, index = priority.topk(slots, dim=1)
    return Samples(index, positive=value > 1, negative=(value >= 0) & (value <= 1))
