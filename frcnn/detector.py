"""Faster R-CNN: the whole path of the data, training and inference.

    pictures -> preprocess -> backbone -> neck (FPN) -> rpn_head -> proposals -> roi_head -> detections

Shape shorthand: B images, P proposals per image, N detections of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from frcnn.backbone import ResNet
from frcnn.config import DataConfig, ModelConfig
from frcnn.fpn import FPN
from frcnn.preprocess import as_bgr, normalise, pad, resize
from frcnn.roi_head import RoIHead
from frcnn.rpn import RPNHead
from frcnn.structures import Batch, Detections
from frcnn.targets import GroundTruth

if TYPE_CHECKING:
    from frcnn.inference import FastDetector

Image = str | Path | np.ndarray | Tensor


class FasterRCNN(nn.Module):
    """A detector built from a recipe's model and data configuration.

    In training mode `model(batch)` returns the four losses; in evaluation mode it returns one Detections per
    image, in pixels of the network's input. `predict` goes from pictures to detections in one call.
    """

    def __init__(self, config: ModelConfig, data: DataConfig | None = None, class_names: Sequence[str] = ()):
        super().__init__()
        if class_names and len(class_names) != config.num_classes:
            raise ValueError(
                f"{len(class_names)} class names for a model of {config.num_classes} classes: "
                "set num_classes to the number of names"
            )
        self.config = config
        self.data = data or DataConfig()
        self.class_names = tuple(class_names)
        self.backbone = ResNet(config.backbone)
        self.neck = FPN(self.backbone.channels, config.fpn_channels)
        self.rpn_head = RPNHead(config.fpn_channels, config.strides, config.rpn)
        self.roi_head = RoIHead(config.fpn_channels, config.strides[:-1], config.num_classes, config.roi_head)
        self.register_buffer("mean", torch.tensor(self.data.mean), persistent=False)
        self.register_buffer("std", torch.tensor(self.data.std), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions and matrix products are computed in, autocast aside."""
        return self.roi_head.bbox_head.fc_cls.weight.dtype

    def forward(
        self, batch: Batch, with_accuracy: bool = False
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], Tensor] | list[Detections]:
        if self.training:
            losses, accuracy = self.losses(batch)
            return (losses, accuracy) if with_accuracy else losses
        return self.detect(batch, [(1.0, 1.0)] * len(batch.sizes))

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """loss_rpn_cls, loss_rpn_bbox, loss_cls and loss_bbox of an annotated batch, and the percentage of
        sampled boxes that were classified rightly."""
        self._check(batch)
        gt = GroundTruth.pad(batch.boxes, batch.labels, batch.images.device)
        features = self.neck(self.backbone(batch.images))
        logits, deltas = self.rpn_head(features)
        proposals, scores = self.rpn_head.propose(logits, deltas, self._sizes(batch))
        rpn_losses = self.rpn_head.losses(logits, deltas, gt, self._padded_sizes(batch))
        roi_losses, accuracy = self.roi_head.losses(features, proposals, scores, gt)
        return {**rpn_losses, **roi_losses}, accuracy

    @torch.no_grad()
    def detect_padded(
        self, images: Tensor, sizes: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch of images -> its padded detections, best first: nothing waits for the device or depends on
        the data, so one call is a CUDA graph and a compiler sees all of it.

        images: [B, 3, H, W] float32 as `frcnn.preprocess` makes it, or uint8 [B, H, W, 3] BGR, which is
        normalised here; sizes: float32 [B, 2], each image's (height, width) without padding; scales:
        float32 [B, 2], (x, y) factors that boxes are divided by.
        Returns boxes [B, D, 4], scores [B, D] (0 where unused), labels int64 [B, D] (-1), counts int64 [B].
        """
        return self.roi_head.detect(*self.propose(images, sizes), sizes, scales)

    @torch.no_grad()
    def propose(self, images: Tensor, sizes: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The pyramid's levels, proposals [B, P, 4] and which of them exist, bool [B, P]."""
        if images.dtype == torch.uint8:
            images = self._normalise(images, sizes)
        features = self.neck(self.backbone(images.to(self.dtype, memory_format=torch.channels_last)))
        proposals, scores = self.rpn_head.propose(*self.rpn_head(features), sizes)
        return features, proposals, scores > -torch.inf

    def detect(self, batch: Batch, scales: Sequence[tuple[float, float]]) -> list[Detections]:
        """Detections of each image, their boxes divided by the image's (x, y) scale."""
        factors = torch.tensor(scales, dtype=torch.float32, device=batch.images.device)
        *fields, counts = self.detect_padded(batch.images, self._sizes(batch), factors)
        return [
            Detections(*(field[index, :count] for field in fields), self.class_names)
            for index, count in enumerate(counts.tolist())
        ]

    def _normalise(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        """What `preprocess.normalise` and `pad` do, to the bit."""
        pixels = pixels.flip(-1) if self.data.rgb else pixels
        images = (pixels.float() - self.mean) / self.std
        rows = torch.arange(images.shape[1], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[2], device=images.device) < sizes[:, 1:]
        images *= (rows[:, :, None] & columns[:, None, :])[..., None]
        return images.permute(0, 3, 1, 2)

    @torch.no_grad()
    def predict(
        self, images: Image | Sequence[Image], size: tuple[int, int] | None = None, batch_size: int = 1
    ) -> Detections | list[Detections]:
        """Detect objects in one picture or several.

        images: a path, an HWC uint8 BGR array, a uint8 BGR tensor (HWC or CHW), or a list of these.
        size: (long side, short side) that pictures are resized to fit, by default the recipe's.
        Returns one Detections for one picture and a list for a list, boxes in pixels of the originals.
        """
        single = isinstance(images, (str, Path, np.ndarray, Tensor))
        pending = [images] if single else list(images)
        was_training = self.training
        self.eval()
        try:
            found = []
            for start in range(0, len(pending), batch_size):
                pictures = [as_bgr(image) for image in pending[start : start + batch_size]]
                batch, scales = self.preprocess(pictures, size or self.data.size)
                found += self.detect(batch, scales)
        finally:
            self.train(was_training)
        return found[0] if single else found

    def optimize(self, precision: str = "float32", mode: str = "eager", **options) -> FastDetector:
        """A separate, frozen detector for fast inference; see `frcnn.inference.FastDetector`."""
        from frcnn.inference import FastDetector

        return FastDetector(self, precision, mode, **options)

    def preprocess(
        self, pictures: Sequence[np.ndarray], size: tuple[int, int]
    ) -> tuple[Batch, list[tuple[float, float]]]:
        """HWC uint8 BGR pictures -> the network's input on its device, and each picture's (x, y) scale."""
        resized = [resize(picture, size) for picture in pictures]
        images = pad([normalise(image, self.data) for image, _ in resized], self.data.pad_divisor)
        sizes = tuple(image.shape[:2] for image, _ in resized)
        return Batch(images, sizes).to(self.device), [scale for _, scale in resized]

    def _sizes(self, batch: Batch) -> Tensor:
        return torch.tensor(batch.sizes, dtype=torch.float32).to(batch.images.device, non_blocking=True)

    def _padded_sizes(self, batch: Batch) -> list[tuple[int, int]]:
        divisor = self.data.pad_divisor
        return [
            (-(-height // divisor) * divisor, -(-width // divisor) * divisor) for height, width in batch.sizes
        ]

    def _check(self, batch: Batch) -> None:
        images = len(batch.images)
        if not images == len(batch.sizes) == len(batch.boxes) == len(batch.labels):
            raise ValueError(
                f"a training batch needs sizes, boxes and labels for each of its {images} images; got "
                f"{len(batch.sizes)}, {len(batch.boxes)} and {len(batch.labels)} "
                "(an image without objects has boxes of shape [0, 4])"
            )
        for index, (boxes, labels) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
            if boxes.shape != (len(labels), 4):
                raise ValueError(
                    f"image {index} of the batch has boxes of shape {tuple(boxes.shape)} "
                    f"for {len(labels)} labels; expected [{len(labels)}, 4]"
                )
            known = self.config.num_classes
            # labels on a GPU are not looked at: reading them would stall it
            if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < known:
                raise ValueError(
                    f"image {index} of the batch has labels from {labels.min()} to {labels.max()}, but the "
                    f"model knows classes 0 to {known - 1}: build it with the data set's num_classes"
                )
