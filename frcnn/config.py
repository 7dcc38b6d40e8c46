"""Recipes as data: frozen dataclasses that say everything about a model, its data and its schedule.

A recipe is changed with ``dataclasses.replace``; nothing is looked up by string and nothing is inherited.
Lengths are in pixels of the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

BoxLoss = Literal["l1", "iou", "giou", "diou", "ciou", "bounded_iou"]


@dataclass(frozen=True)
class BackboneConfig:
    """A ResNet or ResNeXt."""

    depth: Literal[18, 34, 50, 101, 152] = 50
    style: Literal["pytorch", "caffe"] = "pytorch"
    """pytorch: stride in the 3x3 of a bottleneck; caffe: stride in its first 1x1, norms without gradient."""
    groups: int = 1
    base_width: int = 64
    """Width of a bottleneck's 3x3 per group, scaled as in ResNeXt (4 for 32x4d and 64x4d)."""
    frozen_stages: int = 1
    """-1 trains everything, 0 freezes the stem, n the stem and the first n stages."""
    norm_eval: bool = True
    """Keep BatchNorm on its stored statistics while training (it must be False to train from scratch)."""
    recompute: bool = False
    """Compute residual blocks again in the backward pass instead of keeping what is inside them: less memory
    for a third more work. Statistics of norms that learn them would be counted twice: needs norm_eval."""
    pretrained: str | None = None
    """Published initialisation that training expects; see frcnn.zoo.BACKBONE_WEIGHTS."""


@dataclass(frozen=True)
class RPNConfig:
    """Region proposal network."""

    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    pos_iou: float = 0.7
    neg_iou: float = 0.3
    min_pos_iou: float = 0.3
    samples: int = 256
    """Anchors sampled per image."""
    pos_fraction: float = 0.5
    pre_nms_train: int = 2000
    """Best-scoring anchors kept per level before NMS while training."""
    pre_nms_test: int = 1000
    post_nms_train: int = 1000
    """Proposals kept per image over all levels while training."""
    post_nms_test: int = 1000
    nms_iou: float = 0.7
    min_size: float = 0.0
    """Proposals whose width or height is not larger than this are dropped."""


@dataclass(frozen=True)
class RoIHeadConfig:
    """Box head: RoIAlign, two fully connected layers, class scores and box deltas."""

    pool_size: int = 7
    sampling_ratio: int = 0
    """Sampling points per bin and axis; 0 chooses them by the box's size."""
    finest_scale: float = 56.0
    fc_channels: int = 1024
    class_agnostic: bool = False
    """One set of box deltas for all classes."""
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    pos_iou: float = 0.5
    neg_iou: float = 0.5
    samples: int = 512
    """Proposals sampled per image."""
    pos_fraction: float = 0.25
    box_loss: BoxLoss = "l1"
    """Every loss but l1 is computed on decoded boxes."""
    box_loss_weight: float = 1.0
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100


@dataclass(frozen=True)
class ModelConfig:
    """Architecture, target assignment and post-processing."""

    backbone: BackboneConfig = BackboneConfig()
    fpn_channels: int = 256
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Strides of the pyramid; the last level subsamples the one before and serves the RPN only."""
    rpn: RPNConfig = RPNConfig()
    roi_head: RoIHeadConfig = RoIHeadConfig()
    num_classes: int = 80


@dataclass(frozen=True)
class DataConfig:
    """From a picture to the network's input."""

    size: tuple[int, int] = (1333, 800)
    """(long side, short side) that a picture is shrunk or enlarged to fit, keeping its aspect."""
    train_short_sides: tuple[int, ...] = (800,)
    """Short sides drawn at random while training (multi-scale training)."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Per channel, in the order the network sees them."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    rgb: bool = True
    """Whether the network sees RGB (pytorch style) or BGR (caffe style)."""
    pad_divisor: int = 32
    flip: float = 0.5
    """Probability of a horizontal flip while training."""
    min_image_side: int = 32
    """Training drops pictures with a smaller side."""


@dataclass(frozen=True)
class ScheduleConfig:
    """SGD with linear warm-up and step decay."""

    epochs: int = 12
    decay_epochs: tuple[int, ...] = (8, 11)
    """After each of these epochs the learning rate is multiplied by `decay`."""
    decay: float = 0.1
    lr: float = 0.02
    """Learning rate for `lr_batch` images per step; scaled linearly for other batches."""
    lr_batch: int = 16
    images_per_process: int = 2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_iterations: int = 500
    warmup_factor: float = 0.001
    clip_grad_norm: float | None = None


@dataclass(frozen=True)
class Published:
    """What MMDetection's zoo publishes for a recipe."""

    box_ap: float
    memory_gb: float | None = None
    """Training memory per GPU at 2 images."""
    fps: float | None = None
    """Images per second on one V100, batch 1, post-processing included, loading excluded."""
    checkpoint: str = ""
    """Path of the file under the published model store; its last eight hex digits begin its sha256."""


@dataclass(frozen=True)
class Recipe:
    """A named Faster R-CNN: model, data, schedule and, for the zoo, the published figures."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    published: Published | None = None
