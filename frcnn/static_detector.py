"""The detector with fixed shapes from end to end: no synchronisation with the host, nothing data-dependent.

Proposals and detections are padded, and how many there are stays on the device. That makes one call a CUDA
graph, and lets a compiler see all of it. The detections are exactly the plain path's.

Shape shorthand: B images, P proposals per image, C classes, K detections kept per class, D per image.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frcnn_ops
from frcnn.detector import FasterRCNN
from frcnn.folding import FoldedBoxHead, FoldedFPN, FoldedResNet, FoldedRPN, has_onednn


class StaticDetector(nn.Module):
    """A frozen copy of a FasterRCNN for inference, computing in `dtype`; the original stays as it is.

    fused: use oneDNN's fused convolutions where this torch and CPU have them.
    """

    def __init__(self, model: FasterRCNN, dtype: torch.dtype = torch.float32, fused: bool = True):
        super().__init__()
        fused = fused and has_onednn(model.device, dtype)
        self.dtype = dtype
        self.num_classes = model.config.num_classes
        self.rgb = model.data.rgb
        self.backbone = FoldedResNet(model.backbone, dtype, fused)
        self.neck = FoldedFPN(model.neck, dtype, fused)
        self.rpn_head = FoldedRPN(model.rpn_head, dtype, fused)
        self.roi_head = copy.copy(model.roi_head)
        box_head = FoldedBoxHead(model.roi_head.bbox_head, model.config.roi_head.pool_size, dtype)
        self.roi_head._modules = {"bbox_head": box_head}
        self.register_buffer("mean", torch.tensor(model.data.mean, device=model.device))
        self.register_buffer("std", torch.tensor(model.data.std, device=model.device))
        self.eval()

    def forward(self, images: Tensor, sizes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch of pictures -> its padded detections, best first.

        images: [B, 3, H, W] float32 as `frcnn.preprocess` makes it, or uint8 [B, H, W, 3] BGR, which is
        normalised here; sizes: float32 [B, 2], each picture's (height, width) without padding; scales:
        float32 [B, 2], (x, y) factors that boxes are divided by.
        Returns boxes [B, D, 4], scores [B, D] (0 where unused), labels int64 [B, D] (-1), counts int64 [B].
        """
        features, proposals, present = self.propose(images, sizes)
        proposals = proposals.where(present[..., None], 0.0)  # nothing to pool for an absent box
        logits, deltas = self.roi_head(features, proposals.unbind())
        return self._select(proposals, present, logits, deltas, sizes, scales)

    def detect_soft(
        self, images: Tensor, sizes: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `forward`, for soft-NMS, whose steps depend on the picture: this one synchronises."""
        features, proposals, present = self.propose(images, sizes)
        compact = [boxes[mask] for boxes, mask in zip(proposals, present, strict=True)]
        pixels = [(int(height), int(width)) for height, width in sizes.tolist()]
        found = self.roi_head.detect(features, compact, pixels, [tuple(scale) for scale in scales.tolist()])
        most = self.roi_head.config.max_detections
        boxes, scores, labels = zip(*found, strict=True)
        return (
            torch.stack([F.pad(image, (0, 0, 0, most - len(image))) for image in boxes]),
            torch.stack([F.pad(image, (0, most - len(image))) for image in scores]),
            torch.stack([F.pad(image, (0, most - len(image)), value=-1) for image in labels]),
            torch.tensor([len(image) for image in labels]),
        )

    def propose(self, images: Tensor, sizes: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The pyramid's levels, proposals [B, P, 4] and which of them exist, bool [B, P]."""
        if images.dtype == torch.uint8:
            images = self._normalise(images, sizes)
        images = images.to(self.dtype, memory_format=torch.channels_last)
        features = self.neck(self.backbone(images))
        proposals, scores = self.rpn_head.propose(*self.rpn_head(features), sizes)
        return features, proposals, scores > -torch.inf

    def _normalise(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        """What `preprocess.normalise` and `pad` do, to the bit."""
        pixels = pixels.flip(-1) if self.rgb else pixels
        images = (pixels.float() - self.mean) / self.std
        rows = torch.arange(images.shape[1], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[2], device=images.device) < sizes[:, 1:]
        images *= (rows[:, :, None] & columns[:, None, :])[..., None]
        return images.permute(0, 3, 1, 2)

    def _select(
        self,
        proposals: Tensor,
        present: Tensor,
        logits: Tensor,
        deltas: Tensor,
        sizes: Tensor,
        scales: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Threshold, NMS within each class and the best D of all classes."""
        config, classes = self.roi_head.config, self.num_classes
        images, count = present.shape
        probabilities = logits.view(images, count, classes + 1).softmax(-1)[..., :-1]
        wanted = (probabilities > config.score_threshold) & present[..., None]
        scores = probabilities.masked_fill(~wanted, -torch.inf).transpose(1, 2).contiguous()  # [B, C, P]

        boxes = frcnn_ops.decode_boxes(proposals.flatten(0, 1), deltas, config.stds)
        boxes = boxes.view(images, count, -1, 4).transpose(1, 2)  # [B, C or 1, P, 4]
        limits = sizes.flip(-1).repeat(1, 2)[:, None, None]
        boxes = boxes.clamp(min=0).minimum(limits) / scales.repeat(1, 2)[:, None, None]
        boxes = boxes.expand(-1, classes, -1, -1).contiguous()

        most = min(count, config.max_detections)
        keep, _ = frcnn_ops.nms_padded(boxes.flatten(0, 1), scores.flatten(0, 1), config.nms_iou, most)
        keep = keep.view(images, classes, most)
        box = keep.clamp(min=0)
        kept_scores = scores.gather(2, box)

        # One integer orders as the plain path does: by score (a positive float's bits order like the float),
        # then by proposal, then by class.
        rank = box * classes + torch.arange(classes, device=box.device)[:, None]
        key = (kept_scores.view(torch.int32).long() << 32) - rank
        key = key.masked_fill(keep < 0, -(2**62)).flatten(1)
        best, index = key.topk(min(config.max_detections, key.shape[1]), dim=1)
        used = best > -(2**62)

        label = index // most
        source = label * count + box.flatten(1).gather(1, index)
        boxes = boxes.view(images, -1, 4).gather(1, source[..., None].expand(-1, -1, 4))
        return (
            boxes.where(used[..., None], 0.0),
            scores.flatten(1).gather(1, source).masked_fill(~used, 0.0),
            label.masked_fill(~used, -1),
            used.sum(1),
        )
