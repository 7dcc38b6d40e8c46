"""Faster R-CNN: the whole path of the data, training and inference.

    images -> preprocess -> backbone -> neck (FPN) -> rpn_head -> proposals -> roi_head -> detections

Shape shorthand: B images, P proposals per image, N detections of an image.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

import frcnn_ops
from frcnn.backbone import ResNet
from frcnn.checked import is_name
from frcnn.checkpoint.save import save_model
from frcnn.config import DataConfig, ModelConfig
from frcnn.conv import computed_dtype
from frcnn.fpn import FPN
from frcnn.inference.hardware import float32_arithmetic
from frcnn.inference.stream import Predictor
from frcnn.preprocess import padded
from frcnn.roi_head import RoIHead
from frcnn.rpn import RPNHead
from frcnn.structures import Batch, Detections
from frcnn.targets import GroundTruth

if TYPE_CHECKING:
    from frcnn.export.certificate import Certificate
    from frcnn.inference.fast_detector import FastDetector, Mode
    from frcnn.inference.hardware import Precision


class FasterRCNN(nn.Module, Predictor):
    """A detector built from a recipe's model and data configuration.

    In training mode `model(batch)` returns the four losses; in evaluation mode it returns one Detections per
    image, in pixels of the network's input. `predict` and `stream` (of `frcnn.inference.stream.Predictor`) go
    from images to detections.
    """

    def __init__(self, config: ModelConfig, data: DataConfig | None = None, class_names: Sequence[str] = ()):
        super().__init__()
        if class_names and len(class_names) != config.num_classes:
            raise ValueError(
                f"{len(class_names)} class names for a model of {config.num_classes} classes: "
                "set num_classes to the number of names"
            )
        if not all(map(is_name, class_names)):
            raise ValueError(f"class names are text without control characters, not {class_names!r:.80}")
        self.config = config
        self.data = data or DataConfig()
        self.class_names = tuple(class_names)
        self.backbone = ResNet(config.backbone, self.data.channels)
        self.neck = FPN(self.backbone.channels, config.fpn_channels)
        self.rpn_head = RPNHead(config.fpn_channels, config.strides, config.rpn)
        self.roi_head = RoIHead(config.fpn_channels, config.strides[:-1], config.num_classes, config.roi_head)

    @property
    def device(self) -> torch.device:
        return self.roi_head.bbox_head.fc_cls.weight.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FasterRCNN:
        """What `to` and `cuda` call. On a GPU the weights of convolutions lie as the maps do, or cuDNN would
        convert them in every pass."""
        super()._apply(fn, recurse)
        if self.device.type == "cuda":
            convert_conv2d_weight_memory_format(self, torch.channels_last)
        return self

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
        sampled boxes that were classified correctly.

        Only the norms depend on the model's mode: anchors and proposals are assigned and sampled as in
        training in evaluation mode too.

        Raises ValueError, naming the image, for boxes or labels that are missing, of another shape or, where
        they are on the CPU, of impossible values.
        """
        return self.losses_of(batch.images, self.ground_truth(batch))

    def ground_truth(self, batch: Batch) -> GroundTruth:
        """What an annotated batch is to learn, beside its images; errors as of `losses`."""
        self._check(batch)
        padded_sizes = [padded(size, self.data.pad_divisor) for size in batch.sizes]
        generator = None if batch.seed is None else torch.Generator().manual_seed(batch.seed)
        seeds = torch.randint(2**63 - 1, (2,), generator=generator)
        return GroundTruth.pad(
            batch.boxes,
            batch.labels,
            batch.sizes,
            padded_sizes,
            seeds,
            batch.images.device,
            self.config.ignore_iof,
        )

    def losses_of(self, images: Tensor, gt: GroundTruth) -> tuple[dict[str, Tensor], Tensor]:
        """What `losses` returns; nothing waits for the device, so that a call can be captured as a graph."""
        features = self.neck(self.backbone(self._normalize(images, gt.sizes)))
        maps = self.rpn_head.maps(features)
        with torch.no_grad():
            proposals, scores = self.rpn_head.propose(*self.rpn_head.split(maps), gt.sizes, training=True)
        rpn_losses = self.rpn_head.losses(maps, gt, gt.seeds[0])
        roi_losses, accuracy = self.roi_head.losses(features, proposals, scores, gt, gt.seeds[1])
        return {**rpn_losses, **roi_losses}, accuracy

    @torch.no_grad()
    def detect_padded(
        self, images: Tensor, sizes: Tensor, scales: Tensor, details: bool = False
    ) -> tuple[Tensor, ...]:
        """A batch of images -> its padded detections, best first.

        Nothing waits for the device and no shape depends on the data, so a call can be captured as one CUDA
        graph and compiled as a whole.

        images: [B, C, H, W] float32 as `frcnn.preprocess` makes it, or uint8 [B, H, W, C] (BGR), which is
        normalized here; sizes: float32 [B, 2], each image's (height, width) without padding; scales:
        float32 [B, 2], (x, y) factors that boxes are divided by.
        Returns boxes [B, D, 4], scores [B, D] (0 where unused), labels int64 [B, D] (-1), counts int64 [B];
        with details also class probabilities [B, D, C + 1] and box features [B, D, F], float32 (0).
        """
        return self.roi_head.detect(*self.propose(images, sizes), sizes, scales, details)

    @torch.no_grad()
    def propose(self, images: Tensor, sizes: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The pyramid's levels, proposals [B, P, 4] and which of them exist, bool [B, P]."""
        features, logits, deltas = self.score_anchors(images, sizes)
        proposals, scores = self.rpn_head.propose(logits, deltas, sizes)
        return features, proposals, scores > -torch.inf

    @torch.no_grad()
    def score_anchors(self, images: Tensor, sizes: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The pyramid's levels, and what `RPNHead` says of them: logits and deltas."""
        images = self._normalize(images, sizes)
        features = self.neck(self.backbone(images.to(self.dtype, memory_format=torch.channels_last)))
        return features, *self.rpn_head(features)

    def _run(self, images: Tensor, sizes: Tensor, scales: Tensor, details: bool) -> tuple[Tensor, ...]:
        with evaluating(self), float32_arithmetic("float32", self.device):
            return self.detect_padded(images, sizes, scales, details)

    def _normalize(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        """Of uint8 what `preprocess.normalize` and `pad` make, to the bit; float32 as it is."""
        if pixels.dtype != torch.uint8:
            return pixels
        data, dtype = self.data, computed_dtype(self.roi_head.bbox_head.fc_cls.weight)
        return frcnn_ops.normalize_images(pixels, sizes, data.mean, data.std, data.rgb, dtype)

    def optimize(
        self, precision: Precision = "float32", mode: Mode = "eager", few_shapes: bool = False
    ) -> FastDetector:
        """A separate, frozen detector for fast inference; see `FastDetector`."""
        from frcnn.inference.fast_detector import FastDetector

        return FastDetector(self, precision, mode, few_shapes)

    def export(self, path: str | Path, images: Sequence[str | Path], **options: Any) -> Certificate:
        """Write the model for another runtime, certified on images; see `frcnn.export.export.export`."""
        from frcnn.export.export import export

        return export(self, path, images, **options)

    def save(self, path: str | Path) -> None:
        """Write the model to a .pth or .safetensors file, for `frcnn.load`; see `frcnn.checkpoint.save`."""
        save_model(self, path)

    def fingerprint(self) -> str:
        """Equal for models of equal weights and configuration, on any device."""
        return fingerprint(self, self.config, self.data, self.class_names)

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
            known, least = self.config.num_classes, -1 if self.config.ignore_iof else 0
            # values on a GPU are not looked at: reading them would stall it
            if boxes.device.type == "cpu":
                proper = boxes.isfinite().all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1)
                if not proper.all():
                    wrong = int(proper.long().argmin())
                    raise ValueError(
                        f"image {index} of the batch: boxes[{wrong}] is {boxes[wrong].tolist()}; expected "
                        "finite x1, y1, x2, y2 with x1 <= x2 and y1 <= y2 (COCO's x, y, width, height must "
                        "be converted)"
                    )
            if (
                labels.device.type == "cpu"
                and len(labels)
                and not least <= labels.min() <= labels.max() < known
            ):
                raise ValueError(
                    f"image {index} of the batch has labels from {labels.min()} to {labels.max()}, but the "
                    f"model knows classes 0 to {known - 1}: build it with the data set's num_classes"
                )


_evaluating: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
"""Model -> how many threads are in `evaluating`, and its mode before."""
_evaluating_lock = threading.Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block. Threads may overlap: the first one in switches, the last one out back.

    The count lives outside the model, so that a model can be copied and pickled at any time.
    """
    with _evaluating_lock:
        threads, was_training = _evaluating.get(model, (0, model.training))
        _evaluating[model] = threads + 1, was_training
        if not threads:
            model.eval()
    try:
        yield
    finally:
        with _evaluating_lock:
            threads, was_training = _evaluating.pop(model)
            if threads > 1:
                _evaluating[model] = threads - 1, was_training
            else:
                model.train(was_training)


def fingerprint(module: nn.Module, *settings: object) -> str:
    """A hash of a module's state and of the settings' text form."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for name, tensor in module.state_dict().items():
        tensor = tensor.to_dense() if tensor.is_mkldnn else tensor
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
