"""The box head: RoIAlign over the pyramid, two fully connected layers, class scores and box deltas.

Shape shorthand: B images, P proposals per image, S samples per image, R = boxes of all images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frcnn_ops
from frcnn.config import RoIHeadConfig
from frcnn.losses import accuracy, box_loss, class_loss
from frcnn.soft_nms import soft_nms
from frcnn.targets import GroundTruth, sample


class BBoxHead(nn.Module):
    """Pooled features -> class logits [R, C + 1] (background last) and deltas [R, 4*C] (or [R, 4])."""

    def __init__(self, channels: int, num_classes: int, config: RoIHeadConfig):
        super().__init__()
        pooled = channels * config.pool_size**2
        self.shared_fcs = nn.ModuleList(
            [nn.Linear(pooled, config.fc_channels), nn.Linear(config.fc_channels, config.fc_channels)]
        )
        self.fc_cls = nn.Linear(config.fc_channels, num_classes + 1)
        self.fc_reg = nn.Linear(config.fc_channels, 4 if config.class_agnostic else 4 * num_classes)
        for layer in self.shared_fcs:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        for layer in (*self.shared_fcs, self.fc_cls, self.fc_reg):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        x = pooled.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x), inplace=True)
        return self.fc_cls(x).float(), self.fc_reg(x).float()


class RoIHead(nn.Module):
    """Classifies and refines proposals."""

    def __init__(self, channels: int, strides: Sequence[int], num_classes: int, config: RoIHeadConfig):
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.bbox_head = BBoxHead(channels, num_classes, config)
        self.accuracy = torch.zeros(())
        """Percentage of samples that the last training step classified rightly."""

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Levels of [B, C, H, W] and per image boxes [P, 4] -> class logits and deltas of all boxes."""
        rois = torch.cat([F.pad(image, (1, 0), value=float(index)) for index, image in enumerate(boxes)])
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
        self, features: Sequence[Tensor], proposals: Tensor, scores: Tensor, gt: GroundTruth
    ) -> dict[str, Tensor]:
        """Classification and box loss of a random sample of proposals and ground-truth boxes.

        proposals [B, P, 4] with scores [B, P], of which -inf marks the absent ones.
        """
        config = self.config
        boxes, gt_index = self._candidates(proposals, scores, gt)
        samples = sample(gt_index, config.samples, config.pos_fraction)

        matched = (gt_index.gather(1, samples.index) - 1).clamp(min=0)
        matched_boxes = gt.boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        labels = gt.labels.gather(1, matched).masked_fill(~samples.positive, self.num_classes).flatten()
        boxes = boxes.gather(1, samples.index[..., None].expand(-1, -1, 4))
        # an unused slot still passes through the head, as any small box
        boxes = torch.where(samples.used[..., None], boxes, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
        targets = torch.where(samples.positive[..., None], matched_boxes, boxes).flatten(0, 1)

        logits, deltas = self(features, boxes.unbind())
        used, positive = samples.used.flatten(), samples.positive.flatten()
        self.accuracy = accuracy(logits, labels, used)
        return {
            "loss_cls": class_loss(logits, labels, used),
            "loss_bbox": config.box_loss_weight
            * box_loss(self._of_class(deltas, labels), boxes.flatten(0, 1), targets, positive.float(), config)
            / used.sum().clamp(min=1),
        }

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
        index = labels.clamp(max=self.num_classes - 1)[:, None, None].expand(-1, 1, 4)
        return deltas.view(-1, self.num_classes, 4).gather(1, index).squeeze(1)

    def detect(
        self,
        features: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        scales: Sequence[tuple[float, float]],
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes [N, 4], scores [N] and labels [N] of each image, best first.

        proposals: per image [P, 4]; sizes: (height, width) that boxes are clipped to; scales: (x, y) factors
        that the boxes are divided by, to bring them back to the original picture.
        """
        logits, deltas = self(features, proposals)
        counts = [len(image) for image in proposals]
        rows = zip(
            proposals, logits.softmax(1).split(counts), deltas.split(counts), sizes, scales, strict=True
        )
        return [self._detect_image(*row) for row in rows]

    def _detect_image(
        self,
        proposals: Tensor,
        probabilities: Tensor,
        deltas: Tensor,
        size: tuple[int, int],
        scale: tuple[float, float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        box, label = (probabilities[:, :-1] > config.score_threshold).nonzero(as_tuple=True)
        scores = probabilities[box, label]
        deltas = self._of_class(deltas[box], label)
        boxes = frcnn_ops.decode_boxes(proposals[box], deltas, config.stds, max_shape=size)
        boxes = boxes / boxes.new_tensor(scale * 2)
        if config.soft_nms == "none":
            keep = frcnn_ops.batched_nms(boxes, scores, label, config.nms_iou)
        else:
            keep, scores = soft_nms(boxes, scores, label, config.nms_iou, config.soft_nms)
        keep = keep[: config.max_detections]
        return boxes[keep], scores[keep], label[keep]
