"""Region proposal network (Ren et al., "Faster R-CNN", 2015) on a feature pyramid.

Shape shorthand: B images, L levels, A anchors per position, N = sum of H*W*A over the levels,
K anchors kept per level before NMS, P proposals kept per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
        flat = [position_major(level, 1).squeeze(-1) for level in logits]
        most = min(pre_nms, max(level.shape[1] for level in flat))
        scores, indices = [], []
        for level in flat:
            score, index = level.topk(min(most, level.shape[1]), dim=1)
            spare = most - index.shape[1]
            scores.append(F.pad(score, (0, spare), value=-torch.inf))
            indices.append(F.pad(index, (0, spare)))

        boxes, valid = frcnn_ops.decode_proposals(
            deltas,
            indices,
            sizes,
            self.strides,
            config.scales,
            config.ratios,
            stds=config.stds,
            min_size=config.min_size,
        )
        score = torch.cat(scores, 1).masked_fill(~valid, -torch.inf)

        images, levels = len(sizes), len(flat)
        keep, _ = frcnn_ops.nms_padded(
            boxes.view(images * levels, most, 4), score.view(images * levels, most), config.nms_iou, most
        )
        first = torch.arange(levels, device=keep.device).mul(most)[:, None]
        kept = (keep.clamp(min=0).view(images, levels, most) + first).flatten(1)
        kept_score = score.gather(1, kept).masked_fill(keep.view(images, -1) < 0, -torch.inf)
        best, order = kept_score.topk(min(post_nms, kept_score.shape[1]), dim=1)
        kept = kept.gather(1, order)
        return boxes.gather(1, kept[..., None].expand(-1, -1, 4)), best

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
        if inside is None:
            gt_index, _ = self._assign(anchors, gt)
        else:
            # an empty box overlaps nothing, so an excluded anchor takes no ground-truth box from the others
            gt_index, _ = self._assign(anchors.expand(len(inside), -1, -1) * inside[..., None], gt)
            gt_index = gt_index.masked_fill(~inside, -1)
        samples = sample(gt_index, config.samples, config.pos_fraction, generator)

        index, positive = samples.index, samples.positive
        picked_logits = (
            torch.cat([position_major(level, 1) for level in logits], 1).squeeze(-1).gather(1, index)
        )
        picked_deltas = torch.cat([position_major(level, 4) for level in deltas], 1).gather(
            1, index[..., None].expand(-1, -1, 4)
        )
        picked_anchors = anchors[index]
        matched = (gt_index.gather(1, index) - 1).clamp(min=0)
        targets = gt.boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        targets = torch.where(positive[..., None], targets, picked_anchors)

        average_factor = samples.average_factor()
        return {
            "loss_rpn_cls": objectness_loss(picked_logits, positive, samples.used, average_factor),
            "loss_rpn_bbox": delta_loss(
                picked_deltas.flatten(0, 1),
                picked_anchors.flatten(0, 1),
                targets.flatten(0, 1),
                config.stds,
                positive.flatten().float(),
            )
            / average_factor,
        }

    def _assign(self, anchors: Tensor, gt: GroundTruth) -> tuple[Tensor, Tensor]:
        config = self.config
        return frcnn_ops.assign_max_iou(
            anchors, gt.boxes, config.pos_iou, config.neg_iou, config.min_pos_iou, gt_counts=gt.counts
        )

    def _inside(
        self,
        shapes: Sequence[tuple[int, int]],
        padded_sizes: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> Tensor | None:
        """bool [B, N]: anchors whose position lies in their image's own padded area; None if all do."""
        limits = [[(-int(-h // s), -int(-w // s)) for h, w in padded_sizes] for s in self.strides]
        if all(
            rows <= most_rows and columns <= most_columns
            for (rows, columns), level in zip(shapes, limits, strict=True)
            for most_rows, most_columns in level
        ):
            return None
        per_position = len(self.config.scales) * len(self.config.ratios)
        levels = []
        for (rows, columns), limit in zip(shapes, upload(limits, device), strict=True):
            row = torch.arange(rows, device=device) < limit[:, :1]
            column = torch.arange(columns, device=device) < limit[:, 1:]
            inside = row[:, :, None] & column[:, None]
            levels.append(inside[..., None].expand(-1, -1, -1, per_position).flatten(1))
        return torch.cat(levels, 1)


def position_major(level: Tensor, numbers: int) -> Tensor:
    """[B, A*numbers, H, W] -> [B, H*W*A, numbers], the order of the anchors."""
    return level.permute(0, 2, 3, 1).reshape(len(level), -1, numbers)
