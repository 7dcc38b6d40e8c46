"""The box head: RoIAlign over the pyramid, two fully connected layers, class scores and box deltas.

Shape shorthand: B images, P proposals per image, S samples per image, R = boxes of all images, C classes,
F features of a box (fc_channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import frcnn_ops
from frcnn.config import RoIHeadConfig
from frcnn.conv import Linear, for_calls
from frcnn.targets import GroundTruth


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
        outputs, x = self.outputs(pooled)
        outputs = outputs.float()
        return outputs[:, : self.logits], outputs[:, self.logits :], x

    def outputs(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits, then deltas, [R, C + 1 + 4*C] (or C + 1 + 4), and what both were computed from."""
        *own, last = for_calls(*([layer] for layer in self.shared_fcs), [self.fc_cls, self.fc_reg])
        x = pooled
        for layer, its_own in zip(self.shared_fcs, own, strict=True):
            x = layer(x, its_own, relu=True)
        return self.fc_cls(x, last), x


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
        rois = torch.cat([image.expand(-1, count, 1), boxes], 2)
        return self.bbox_head(self._pool(features, rois))

    def _pool(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Levels of [B, C, H, W] and RoIs [B, P, 5] -> [B * P, C, h, w]."""
        config, levels = self.config, features[: len(self.strides)]
        return frcnn_ops.pyramid_roi_align(
            levels,
            rois.flatten(0, 1),
            config.pool_size,
            self.strides,
            config.sampling_ratio,
            config.finest_scale,
        )

    def losses(
        self, features: Sequence[Tensor], proposals: Tensor, scores: Tensor, gt: GroundTruth, seed: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Classification and box loss of a random sample of proposals and ground-truth boxes.

        proposals [B, P, 4] with scores [B, P], of which -inf marks the absent ones. seed: int64 [], of the
        sample.
        Returns the losses and the percentage of samples that were classified correctly.
        """
        config = self.config
        gt_index, _ = frcnn_ops.assign_max_iou(
            proposals,
            gt.boxes,
            config.pos_iou,
            config.neg_iou,
            config.pos_iou,
            match_low_quality=False,
            ignore=gt.ignored,
            ignore_iof=gt.ignore_iof,
            gt_counts=gt.counts,
        )
        rois, labels, targets, counts = frcnn_ops.sample_proposals(
            proposals,
            scores,
            gt_index,
            gt.boxes,
            gt.labels,
            gt.counts,
            seed,
            config.samples,
            int(config.samples * config.pos_fraction),
            self.num_classes,
        )
        outputs, _ = self.bbox_head.outputs(self._pool(features, rois))
        of_class, of_box, accuracy = frcnn_ops.box_head_loss(
            outputs,
            labels,
            rois,
            targets,
            counts,
            config.stds,
            self.num_classes,
            config.box_loss,
            config.box_loss_weight,
        )
        return {"loss_cls": of_class, "loss_bbox": of_box}, accuracy

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
