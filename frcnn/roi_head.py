"""The box head: RoIAlign over the pyramid, two fully connected layers, class scores and box deltas.

Shape shorthand: B images, P proposals per image, S samples per image, R = boxes of all images, C classes,
F features of a box (fc_channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frcnn_ops
from frcnn.config import RoIHeadConfig
from frcnn.conv import Linear
from frcnn.losses import accuracy, box_loss, class_loss
from frcnn.targets import GroundTruth, sample


class BBoxHead(nn.Module):
    """Pooled features -> class logits [R, C + 1] (background last), deltas [R, 4*C] (or [R, 4]), and what
    both were computed from, [R, F]."""

    def __init__(self, channels: int, num_classes: int, config: RoIHeadConfig):
        super().__init__()
        self.logits = num_classes + 1
        pooled = channels * config.pool_size**2
        shared = [Linear(pooled, config.fc_channels), Linear(config.fc_channels, config.fc_channels)]
        self.shared_fcs = nn.ModuleList(shared)
        self.fc_cls = Linear(config.fc_channels, self.logits)
        self.fc_reg = Linear(config.fc_channels, 4 if config.class_agnostic else 4 * num_classes)
        for layer in shared:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.initialize_outputs()

    def initialize_outputs(self) -> None:
        """Start the class and box layer afresh."""
        for layer, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = pooled
        for layer in self.shared_fcs:
            x = layer(x, relu=True)
        outputs = self.fc_cls(x, beside=self.fc_reg).float()
        return outputs[:, : self.logits], outputs[:, self.logits :], x


class RoIHead(nn.Module):
    """Classifies and refines proposals."""

    def __init__(self, channels: int, strides: Sequence[int], num_classes: int, config: RoIHeadConfig):
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.bbox_head = BBoxHead(channels, num_classes, config)

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Levels of [B, C, H, W] and boxes [B, P, 4] -> what BBoxHead says of all boxes."""
        images, count, _ = boxes.shape
        image = torch.arange(images, dtype=boxes.dtype, device=boxes.device)[:, None, None]
        rois = torch.cat([image.expand(-1, count, 1), boxes], 2).flatten(0, 1)
        pooled = frcnn_ops.pyramid_roi_align(
            features[: len(self.strides)],
            rois,
            self.config.pool_size,
            self.strides,
            self.config.sampling_ratio,
            self.config.finest_scale,
        )
        return self.bbox_head(pooled)

    def losses(
        self,
        features: Sequence[Tensor],
        proposals: Tensor,
        scores: Tensor,
        gt: GroundTruth,
        generator: torch.Generator | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Classification and box loss of a random sample of proposals and ground-truth boxes.

        proposals [B, P, 4] with scores [B, P], of which -inf marks the absent ones. generator: as in
        `sample`.
        Returns the losses and the percentage of samples that were classified correctly.
        """
        config = self.config
        boxes, gt_index = self._candidates(proposals, scores, gt)
        samples = sample(gt_index, config.samples, config.pos_fraction, generator)

        matched = (gt_index.gather(1, samples.index) - 1).clamp(min=0)
        matched_boxes = gt.boxes.take_along_dim(matched[..., None], 1)
        labels = gt.labels.gather(1, matched).masked_fill(~samples.positive, self.num_classes).flatten()
        boxes = boxes.take_along_dim(samples.index[..., None], 1)
        # an unused slot still passes through the head, as any small box
        unit = F.pad(boxes.new_zeros(2), (0, 2), value=1.0)  # made on the device: an upload would stall it
        boxes = torch.where(samples.used[..., None], boxes, unit)
        targets = torch.where(samples.positive[..., None], matched_boxes, boxes).flatten(0, 1)

        logits, deltas, _ = self(features, boxes)
        used, positive = samples.used.flatten(), samples.positive.flatten()
        losses = {
            "loss_cls": class_loss(logits, labels, used),
            "loss_bbox": config.box_loss_weight
            * box_loss(self._of_class(deltas, labels), boxes.flatten(0, 1), targets, positive.float(), config)
            / used.sum().clamp(min=1),
        }
        return losses, accuracy(logits, labels, used)

    @torch.no_grad()
    def _candidates(self, proposals: Tensor, scores: Tensor, gt: GroundTruth) -> tuple[Tensor, Tensor]:
        """Ground truth followed by proposals, [B, G + P, 4], and what each is assigned to, [B, G + P]."""
        config = self.config
        gt_index, _ = frcnn_ops.assign_max_iou(
            proposals,
            gt.boxes,
            config.pos_iou,
            config.neg_iou,
            config.pos_iou,
            match_low_quality=False,
            gt_counts=gt.counts,
        )
        gt_index = gt_index.masked_fill(scores == -torch.inf, -1)
        # a box without area has no deltas to learn from
        usable = gt.present & (gt.boxes[..., 2:] > gt.boxes[..., :2]).all(-1)
        own = torch.arange(1, gt.boxes.shape[1] + 1, device=gt_index.device).expand_as(usable)
        own = own.masked_fill(~usable, -1)
        return torch.cat([gt.boxes, proposals], 1), torch.cat([own, gt_index], 1)

    def _of_class(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """[R, 4*C] -> [R, 4], each box's deltas for its own class (any class for background)."""
        if self.config.class_agnostic:
            return deltas
        index = labels.clamp(max=self.num_classes - 1)[:, None, None]
        return deltas.view(-1, self.num_classes, 4).take_along_dim(index, 1).squeeze(1)

    def detect(
        self,
        features: Sequence[Tensor],
        proposals: Tensor,
        present: Tensor,
        sizes: Tensor,
        scales: Tensor,
        details: bool = False,
    ) -> tuple[Tensor, ...]:
        """The best D detections of each image after NMS within each class, best first, padded.

        proposals [B, P, 4], of which present, bool [B, P], exist; sizes float32 [B, 2], (height, width) that
        boxes are clipped to; scales float32 [B, 2], (x, y) factors that boxes are divided by, to bring them
        back to the original image.
        Returns boxes [B, D, 4], scores [B, D] (0 where unused), labels int64 [B, D] (-1), counts int64 [B];
        with details also class probabilities [B, D, C + 1] and box features [B, D, F], float32 (0).
        """
        config = self.config
        images, count = present.shape
        logits, deltas, box_features = self(features, proposals)
        probabilities = logits.view(images, count, -1).softmax(-1)
        boxes, scores, labels, rows, counts = frcnn_ops.select_detections(
            probabilities,
            deltas.view(images, count, -1),
            proposals,
            present,
            sizes,
            scales,
            config.stds,
            config.score_threshold,
            config.nms_iou,
            config.max_detections,
        )
        found = boxes, scores, labels, counts
        if not details:
            return found
        row = torch.arange(images, device=rows.device)[:, None] * count + rows.clamp(min=0)
        described = (probabilities.flatten(0, 1), box_features.float())
        return *found, *(values[row].where(rows[..., None] >= 0, 0.0) for values in described)
