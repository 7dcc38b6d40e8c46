"""Region proposal network (Ren et al., "Faster R-CNN", 2015) on a feature pyramid.

Shape shorthand: B images, L levels, A anchors per position, N = sum of H*W*A over the levels,
P proposals kept per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import frcnn_ops
from frcnn.config import RPNConfig
from frcnn.conv import Conv, cast, for_calls
from frcnn.targets import GroundTruth


class RPNHead(nn.Module):
    """Scores and refines the anchors at every position of every level."""

    def __init__(self, channels: int, strides: Sequence[int], config: RPNConfig):
        super().__init__()
        self.anchors = len(config.scales) * len(config.ratios)
        self.config = config
        self.strides = tuple(float(stride) for stride in strides)
        self.rpn_conv = Conv(channels, channels, 3, padding=1)
        self.rpn_conv.overwrite_gradient = True  # of the pyramid's finest map, where memory is at its peak
        self.rpn_cls = Conv(channels, self.anchors, 1)
        self.rpn_reg = Conv(channels, self.anchors * 4, 1)
        for conv in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L of [B, C, H, W] -> logits, L of [B, A, H, W], and deltas, L of [B, A*4, H, W]; float32."""
        return self.split(self.maps(features))

    def maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """L of [B, C, H, W] -> logits, then deltas, L of [B, A*5, H, W]."""
        conv, both = for_calls([self.rpn_conv], [self.rpn_cls, self.rpn_reg])
        return [self.rpn_cls(self.rpn_conv(x, conv, relu=True), both) for x in features]

    def split(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What `forward` returns of what `maps` does."""
        parts = [level.split([self.anchors, 4 * self.anchors], 1) for level in cast(maps, torch.float32)]
        return [logits for logits, _ in parts], [deltas for _, deltas in parts]

    @torch.no_grad()
    def propose(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Tensor, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The best boxes of each image after NMS within each level.

        sizes: float32 [B, 2], heights and widths that boxes are clipped to.
        training: keep as many as the configuration says for training.
        Returns boxes [B, P, 4] and logits [B, P], best first; -inf marks the unused end.
        """
        config = self.config
        pre_nms, post_nms = (
            (config.pre_nms_train, config.post_nms_train)
            if training
            else (config.pre_nms_test, config.post_nms_test)
        )
        anchors = sum(min(pre_nms, level[0].numel()) for level in logits)
        return frcnn_ops.select_proposals(
            logits,
            deltas,
            sizes,
            self.strides,
            config.scales,
            config.ratios,
            config.stds,
            config.min_size,
            config.nms_iou,
            pre_nms,
            min(post_nms, anchors),
        )

    def losses(self, maps: Sequence[Tensor], gt: GroundTruth, seed: Tensor) -> dict[str, Tensor]:
        """Classification and box loss of a random sample of anchors.

        maps: what `maps` returns. gt: the anchors beyond an image's own padded size, which exist only because
        another image of the batch is larger, do not take part. seed: int64 [], of the sample.
        """
        config = self.config
        shapes = [(level.shape[-2], level.shape[-1]) for level in maps]
        levels = frcnn_ops.grid_anchors(
            shapes, self.strides, config.scales, config.ratios, image_sizes=gt.padded_sizes
        )
        anchors = torch.cat(levels, 1)
        gt_index, _ = frcnn_ops.assign_max_iou(
            anchors,
            gt.boxes,
            config.pos_iou,
            config.neg_iou,
            config.min_pos_iou,
            ignore=gt.ignored,
            ignore_iof=gt.ignore_iof,
            gt_counts=gt.counts,
        )
        most_positive = int(config.samples * config.pos_fraction)
        index, counts = frcnn_ops.sample_anchors(gt_index, seed, config.samples, most_positive)
        of_class, of_box = frcnn_ops.rpn_loss(maps, anchors, gt.boxes, gt_index, index, counts, config.stds)
        return {"loss_rpn_cls": of_class, "loss_rpn_bbox": of_box}
