"""What a training step knows of its images beside their pixels.

Everything has a fixed size and stays on the device, so a training step never waits for it.
Shape shorthand: B images, G ground-truth boxes of the image that has most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frcnn.structures import upload

LEAST = 16
"""Boxes that every image has room for, so that batches of few boxes have one shape."""


@dataclass(frozen=True)
class GroundTruth:
    """The annotated boxes of a batch, padded to the same number per image, a power of two, and its sizes.

    boxes [B, G, 4] float32, labels int64 [B, G], counts int64 [B], of objects, behind which come the regions
    to ignore, whose label is -1; sizes and padded_sizes float32 [B, 2], each image's (height, width) without
    padding, and padded on its own; seeds int64 [2], of the random samples of anchors and of proposals. All
    are views of `packed`, int64, in which float32 lie by twos.
    ignore_iof: see ModelConfig.
    """

    packed: Tensor
    ignore_iof: float
    boxes: Tensor
    labels: Tensor
    counts: Tensor
    sizes: Tensor
    padded_sizes: Tensor
    seeds: Tensor

    @property
    def ignored(self) -> Tensor | None:
        """Boxes [B, G, 4] of the regions to ignore, where they are looked at; the others cover nothing."""
        return self.boxes.where((self.labels < 0)[..., None], 0) if self.ignore_iof > 0 else None

    @staticmethod
    def pad(
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        padded_sizes: Sequence[tuple[int, int]],
        seeds: Tensor,
        device: torch.device,
        ignore_iof: float = 0.0,
    ) -> GroundTruth:
        """Padded where the boxes are, then brought to the device in one piece."""
        images, most = len(boxes), max(LEAST, *(len(image_boxes) for image_boxes in boxes))
        most = 1 << (most - 1).bit_length()
        host = boxes[0].device
        all_boxes = torch.zeros(images, most, 4, device=host)
        all_labels = torch.zeros(images, most, dtype=torch.long, device=host)
        for index, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
            objects_first = (image_labels < 0).argsort(stable=True)
            all_boxes[index, : len(image_boxes)] = image_boxes[objects_first]
            all_labels[index, : len(image_labels)] = image_labels[objects_first]
        numbers = [
            torch.stack([(image_labels >= 0).sum() for image_labels in labels]),
            *(upload(each, host, torch.float32).view(torch.long).flatten() for each in (sizes, padded_sizes)),
            upload(seeds, host),
        ]
        packed = torch.cat([all_boxes.view(torch.long).flatten(), all_labels.flatten(), *numbers])
        return GroundTruth.unpack(upload(packed, device), images, ignore_iof)

    @staticmethod
    def unpack(packed: Tensor, images: int, ignore_iof: float = 0.0) -> GroundTruth:
        """Of `packed`, and how many images it is for."""
        most = (len(packed) - 2) // (3 * images) - 1
        boxes, labels, counts, sizes, padded_sizes, seeds = packed.split(
            [2 * images * most, images * most, images, images, images, 2]
        )
        return GroundTruth(
            packed,
            ignore_iof,
            boxes.view(torch.float32).view(images, most, 4),
            labels.view(images, most),
            counts,
            sizes.view(torch.float32).view(images, 2),
            padded_sizes.view(torch.float32).view(images, 2),
            seeds,
        )
