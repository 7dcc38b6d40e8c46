"""How well a recipe's anchors fit the boxes of a data set, and which scales and ratios would fit better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from frcnn.config import ModelConfig, RPNConfig

SCALES = (1.0, 2.0, 4.0, 5.66, 8.0, 11.31, 16.0, 32.0)
RATIOS = (0.1, 0.2, 0.33, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
"""What `better` tries to add."""


def best_ious(boxes: np.ndarray, sizes: np.ndarray, model: ModelConfig) -> np.ndarray:
    """The IoU of each box with the anchor that fits it best.

    boxes: float [N, 4], x1, y1, x2, y2 in pixels of the network's input; sizes: [N, 2], height and width of
    the input that each lies in. Returns float64 [N].

    An anchor of given shape overlaps a box most where its center is nearest, along both axes, so one anchor
    of every level and shape is looked at, not hundreds of thousands.
    """
    boxes, sizes = np.asarray(boxes, dtype=np.float64), np.asarray(sizes)
    best = np.zeros(len(boxes))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for stride, scale, ratio in product(model.strides, model.rpn.scales, model.rpn.ratios):
        sides = stride * scale * np.array([ratio**-0.5, ratio**0.5])  # width, height
        cells = np.ceil(sizes[:, ::-1] / stride)
        center = np.clip(np.rint((boxes[:, :2] + boxes[:, 2:]) / 2 / stride), 0, cells - 1) * stride
        low, high = np.maximum(boxes[:, :2], center - sides / 2), np.minimum(boxes[:, 2:], center + sides / 2)
        common = np.maximum(high - low, 0).prod(1)
        best = np.maximum(best, common / (area + sides.prod() - common))
    return best


def better(
    boxes: np.ndarray, sizes: np.ndarray, model: ModelConfig, most: int = 3
) -> tuple[Sequence[float], Sequence[float], float]:
    """Scales and ratios, at most so many of them new, that leave fewer boxes without an anchor.

    An anchor reaches a box where their IoU is `min_pos_iou` or more. Returns scales, ratios and the share of
    the boxes that these do not reach. Greedy: each step adds what reaches most, and ends when nothing
    reaches one box in a hundred more.
    """

    def missed(rpn: RPNConfig) -> float:
        ious = best_ious(boxes, sizes, replace(model, rpn=rpn))
        return float((ious < model.rpn.min_pos_iou).mean())

    rpn, share = model.rpn, missed(model.rpn)
    for _ in range(most):
        tried = [replace(rpn, scales=(*sorted({*rpn.scales, scale}),)) for scale in SCALES]
        tried += [replace(rpn, ratios=(*sorted({*rpn.ratios, ratio}),)) for ratio in RATIOS]
        found, index = min((missed(one), position) for position, one in enumerate(tried))
        if share - found < 0.01:
            break
        rpn, share = tried[index], found
    return rpn.scales, rpn.ratios, share
