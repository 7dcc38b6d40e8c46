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
from frcnn.conv import Conv
from frcnn.losses import delta_loss, objectness_loss
from frcnn.structures import upload
from frcnn.targets import GroundTruth, sample


class RPNHead(nn.Module):
    """Scores and refines the anchors at every position of every level."""

    def __init__(self, channels: int, strides: Sequence[int], config: RPNConfig):
        super().__init__()
        self.anchors = len(config.scales) * len(config.ratios)
        self.config = config
        self.strides = tuple(float(stride) for stride in strides)
        self.rpn_conv = Conv(channels, channels, 3, padding=1)
        self.rpn_cls = Conv(channels, self.anchors, 1)
        self.rpn_reg = Conv(channels, self.anchors * 4, 1)
        for conv in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L of [B, C, H, W] -> logits, L of [B, A, H, W], and deltas, L of [B, A*4, H, W]; float32."""
        logits, deltas = [], []
        for feature in features:
            x = self.rpn_conv(feature, relu=True)
            outputs = self.rpn_cls(x, beside=self.rpn_reg).float()
            # split, as the gradient of two slices would be summed in NCHW and then copied
            level_logits, level_deltas = outputs.split([self.anchors, 4 * self.anchors], 1)
            logits.append(level_logits)
            deltas.append(level_deltas)
        return logits, deltas

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

    def losses(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        gt: GroundTruth,
        padded_sizes: Sequence[tuple[int, int]],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Classification and box loss of a random sample of anchors.

        padded_sizes: per image its (height, width) padded on its own; the anchors beyond, which exist only
        because another image of the batch is larger, do not take part. generator: as in `sample`.
        """
        config = self.config
        shapes = [(level.shape[-2], level.shape[-1]) for level in logits]
        anchors = torch.cat(
            frcnn_ops.grid_anchors(
                shapes, self.strides, config.scales, config.ratios, device=logits[0].device
            )
        )
        inside = self._inside(shapes, padded_sizes, anchors.device)
        # an empty box overlaps nothing, so an excluded anchor takes no ground-truth box from the others
        gt_index, _ = frcnn_ops.assign_max_iou(
            anchors if inside is None else anchors * inside[..., None],
            gt.boxes,
            config.pos_iou,
            config.neg_iou,
            config.min_pos_iou,
            gt_counts=gt.counts,
        )
        if inside is not None:
            gt_index = gt_index.masked_fill(~inside, -1)
        samples = sample(gt_index, config.samples, config.pos_fraction, generator)

        index, positive = samples.index, samples.positive
        logit = torch.cat([position_major(level, 1) for level in logits], 1).squeeze(-1).gather(1, index)
        delta = torch.cat([position_major(level, 4) for level in deltas], 1)
        delta = delta.take_along_dim(index[..., None], 1)
        picked_anchors = anchors[index]
        matched = (gt_index.gather(1, index) - 1).clamp(min=0)
        targets = gt.boxes.take_along_dim(matched[..., None], 1)
        targets = torch.where(positive[..., None], targets, picked_anchors)

        average_factor = samples.average_factor()
        return {
            "loss_rpn_cls": objectness_loss(logit, positive, samples.used, average_factor),
            "loss_rpn_bbox": delta_loss(
                delta.flatten(0, 1),
                picked_anchors.flatten(0, 1),
                targets.flatten(0, 1),
                config.stds,
                positive.flatten().float(),
            )
            / average_factor,
        }

    def _inside(
        self,
        shapes: Sequence[tuple[int, int]],
        padded_sizes: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> Tensor | None:
        """bool [B, N]: anchors whose position lies in their image's own padded area; None if all do."""
        (rows, columns), stride = shapes[0], self.strides[0]
        last_row, last_column = (rows - 1) * stride, (columns - 1) * stride
        if all(height > last_row and width > last_column for height, width in padded_sizes):
            return None  # what reaches the end of the finest level reaches that of all
        sizes = upload(padded_sizes, device)
        levels = []
        for (rows, columns), stride in zip(shapes, self.strides, strict=True):
            row = torch.arange(rows, device=device) * stride < sizes[:, :1]
            column = torch.arange(columns, device=device) * stride < sizes[:, 1:]
            levels.append((row[:, :, None] & column[:, None]).flatten(1))
        return torch.cat(levels, 1).repeat_interleave(self.anchors, dim=1)


def position_major(level: Tensor, numbers: int) -> Tensor:
    """[B, A*numbers, H, W] -> [B, H*W*A, numbers], the order of the anchors."""
    return level.permute(0, 2, 3, 1).reshape(len(level), -1, numbers)
