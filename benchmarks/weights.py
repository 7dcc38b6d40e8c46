"""Weights that make an untrained detector work as hard as a trained one.

Speed depends on the data: how many proposals survive NMS and how many boxes pass the score threshold. Freshly
initialized heads give next to none, or all. These weights keep a deep network's activations at the scale of
its input, and the class layer is calibrated on the benchmark's own images.
"""

from __future__ import annotations

import math
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frcnn.detector import FasterRCNN
from frcnn.structures import Batch

# standard deviation of a layer's output for unit input; He et al.'s sqrt(2) for layers that are not named
GAINS = {"rpn_cls": 0.3, "rpn_reg": 0.1, "fc_cls": 0.3, "fc_reg": 0.1}
CLASS_SPREAD = 2.0
"""Standard deviation of the class logits over boxes and classes."""
PROPOSAL_SHIFT, DETECTION_SHIFT = 0.2, 0.5
"""Standard deviation of the box deltas: by how much anchors and proposals move, before their stds apply."""
CANDIDATES = 100
"""(box, class) pairs of an image above the score threshold, before NMS."""
LEVEL_SHARES = (0.40, 0.25, 0.20, 0.15)
"""Of the best anchors, how many lie on each level with a convolution of its own, finest first."""


@torch.no_grad()
def generate(model: FasterRCNN, seed: int = 0) -> None:
    """Overwrite every weight. A tensor depends on its name, its shape and the seed only."""
    drawn = model.state_dict().keys()
    last_norm = "bn2" if model.config.backbone.depth < 50 else "bn3"
    for module_name, module in model.named_modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            path = f"{module_name}.{name}"
            if path not in drawn:
                continue
            random = torch.Generator().manual_seed((zlib.crc32(path.encode()) + seed) % 2**32)
            if tensor.is_floating_point():
                tensor.copy_(_draw(module, module_name, name, tensor.shape, random, last_norm))
    # an image that only has its mean subtracted comes in at the scale of its pixels
    if max(model.data.std) == 1:
        model.backbone.conv1.weight /= 57


def _draw(
    module: nn.Module, path: str, name: str, shape: torch.Size, random: torch.Generator, last_norm: str
) -> Tensor:
    noise = torch.randn(shape, generator=random)
    if isinstance(module, nn.BatchNorm2d):
        if name in ("weight", "running_var"):
            value = 1 + 0.1 * noise.clamp(-2, 2)
            # a residual branch adds little to its shortcut, or the sum would grow with the depth
            return 0.2 * value if name == "weight" and path.endswith(last_norm) else value
        return 0.05 * noise
    if name == "bias":
        return 0.05 * noise
    inputs = math.prod(shape[1:])
    return GAINS.get(path.rsplit(".", 1)[-1], math.sqrt(2)) / math.sqrt(inputs) * noise


@torch.no_grad()
def calibrate(model: FasterRCNN, batch: Batch) -> None:
    """Make proposals of all sizes, and CANDIDATES pairs per image that pass the score threshold.

    As in a trained detector most boxes are background then, and NMS leaves some tens of detections.
    """
    head = model.roi_head
    stages = model.backbone(batch.images)
    _spread_over_levels(model, model.rpn_head(model.neck(stages))[0][:-1])
    features = model.neck(stages)
    deltas = [level.permute(0, 2, 3, 1).flatten(0, 2) for level in model.rpn_head(features)[1]]
    _standardize(model.rpn_head.rpn_reg, torch.cat(deltas), PROPOSAL_SHIFT)
    sizes = torch.tensor(batch.sizes, dtype=torch.float32, device=batch.images.device)
    proposals, scores = model.rpn_head.propose(*model.rpn_head(features), sizes)
    present = (scores > -torch.inf).flatten()
    classes, deltas, _ = (outputs[present] for outputs in head(features, proposals))
    _standardize(head.bbox_head.fc_reg, deltas, DETECTION_SHIFT)
    classes = _standardize(head.bbox_head.fc_cls, classes, CLASS_SPREAD)

    wanted = min(CANDIDATES * len(proposals), classes[:, :-1].numel() // 20)
    low, high = -20.0, 40.0
    for _ in range(40):
        background = (low + high) / 2
        shifted = classes + F.pad(classes.new_tensor([background]), (classes.shape[1] - 1, 0))
        above = int((shifted.softmax(1)[:, :-1] > head.config.score_threshold).sum())
        low, high = (background, high) if above > wanted else (low, background)
    head.bbox_head.fc_cls.bias[-1] += high


def _standardize(layer: nn.Module, outputs: Tensor, spread: float) -> Tensor:
    """Make the layer's outputs [N, channels] have mean 0 in each channel and this deviation over all.

    Means would make the same few classes win everywhere, or push all boxes out of the image.
    """
    mean = outputs.mean(0)
    scale = spread / (outputs - mean).std().clamp(min=1e-6)
    layer.weight *= scale
    layer.bias.copy_((layer.bias - mean) * scale)
    return (outputs - mean) * scale


def _spread_over_levels(model: FasterRCNN, logits: list[Tensor]) -> None:
    """Scale each level's features so that the best scores are shared out by LEVEL_SHARES.

    Left alone, the finest level, which has most anchors, would have nearly all of them.
    """
    best = model.config.rpn.post_nms_test * len(logits[0])
    reached = [
        level.flatten().topk(min(max(1, int(share * best)), level.numel() // 4)).values[-1].clamp(min=1e-3)
        for level, share in zip(logits, LEVEL_SHARES, strict=True)
    ]
    for conv, level in zip(model.neck.fpn_convs, reached, strict=True):
        scale = (reached[0] / level).clamp(0.25, 4.0)
        conv.conv.weight *= scale
        conv.conv.bias *= scale
