"""Recipes as data: frozen dataclasses that say everything about a model, its data and its schedule.

A recipe is changed with ``dataclasses.replace``; nothing is looked up by string and nothing is inherited.
Every field is checked against its annotation when the dataclass is made: a wrong one raises ValueError that
names it. Sequences are tuples. Lengths are in pixels of the network's input.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from frcnn.checked import Checked, Range

BoxLoss = Literal["l1", "iou", "giou", "diou", "ciou", "bounded_iou"]
Count = Annotated[int, Range(1, 1_000_000)]
Samples = Annotated[int, Range(1, 1_000_000_000)]
Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(1e-9, 1e6)]
NotNegative = Annotated[float, Range(0, 1e6)]
Level = Annotated[float, Range(-1e6, 1e6)]
Pixels = Annotated[int, Range(1, 32768)]

STRIDES = (4, 8, 16, 32, 64)
LARGEST_BOX_HEAD = 2**30
"""Weights of a box head, 4 GB in float32; the zoo's have 14 million."""


@dataclass(frozen=True)
class BackboneConfig(Checked):
    """A ResNet or ResNeXt."""

    depth: Literal[18, 34, 50, 101, 152] = 50
    style: Literal["pytorch", "caffe"] = "pytorch"
    """pytorch: stride in the 3x3 of a bottleneck; caffe: stride in its first 1x1, norms without gradient."""
    groups: Annotated[int, Range(1, 1024)] = 1
    base_width: Annotated[int, Range(1, 1024)] = 64
    """Width of a bottleneck's 3x3 per group, scaled as in ResNeXt (4 for 32x4d and 64x4d)."""
    frozen_stages: Annotated[int, Range(-1, 4)] = 1
    """-1 trains everything, 0 freezes the stem, n the stem and the first n stages."""
    norm_eval: bool = True
    """Keep BatchNorm on its stored statistics while training (it must be False to train from scratch)."""
    recompute: bool = False
    """Compute residual blocks again in the backward pass instead of keeping what is inside them: less memory
    for a third more work. Statistics of norms that learn them would be counted twice: needs norm_eval."""
    pretrained: str | None = None
    """Published initialization that training expects; see frcnn.zoo.BACKBONE_WEIGHTS."""

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = self.groups == 1 and self.base_width == 64
        self._expect(plain or self.depth >= 50, "depth", "50 or more for a grouped ResNet")
        consistent = self.norm_eval or not self.recompute
        self._expect(consistent, "recompute", "False where BackboneConfig.norm_eval is")


@dataclass(frozen=True)
class RPNConfig(Checked):
    """Region proposal network."""

    scales: Annotated[tuple[Positive, ...], Range(1, 32)] = (8.0,)
    ratios: Annotated[tuple[Positive, ...], Range(1, 32)] = (0.5, 1.0, 2.0)
    stds: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)
    pos_iou: Fraction = 0.7
    neg_iou: Fraction = 0.3
    min_pos_iou: Fraction = 0.3
    samples: Samples = 256
    """Anchors sampled per image."""
    pos_fraction: Fraction = 0.5
    pre_nms_train: Count = 2000
    """Best-scoring anchors kept per level before NMS while training."""
    pre_nms_test: Count = 1000
    post_nms_train: Count = 1000
    """Proposals kept per image over all levels while training."""
    post_nms_test: Count = 1000
    nms_iou: Fraction = 0.7
    min_size: NotNegative = 0.0
    """Proposals whose width or height is not larger than this are dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"at most RPNConfig.pos_iou, {self.pos_iou}"
        self._expect(self.neg_iou <= self.pos_iou, "neg_iou", expected)


@dataclass(frozen=True)
class RoIHeadConfig(Checked):
    """Box head: RoIAlign, two fully connected layers, class scores and box deltas."""

    pool_size: Annotated[int, Range(1, 64)] = 7
    sampling_ratio: Annotated[int, Range(0, 64)] = 0
    """Sampling points per bin and axis; 0 chooses them by the box's size."""
    finest_scale: Positive = 56.0
    fc_channels: Annotated[int, Range(1, 65536)] = 1024
    class_agnostic: bool = False
    """One set of box deltas for all classes."""
    stds: tuple[Positive, Positive, Positive, Positive] = (0.1, 0.1, 0.2, 0.2)
    pos_iou: Fraction = 0.5
    neg_iou: Fraction = 0.5
    samples: Samples = 512
    """Proposals sampled per image."""
    pos_fraction: Fraction = 0.25
    box_loss: BoxLoss = "l1"
    """Every loss but l1 is computed on decoded boxes."""
    box_loss_weight: NotNegative = 1.0
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.5
    max_detections: Count = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"at most RoIHeadConfig.pos_iou, {self.pos_iou}"
        self._expect(self.neg_iou <= self.pos_iou, "neg_iou", expected)


@dataclass(frozen=True)
class ModelConfig(Checked):
    """Architecture, target assignment and post-processing."""

    backbone: BackboneConfig = BackboneConfig()
    fpn_channels: Annotated[int, Range(1, 4096)] = 256
    strides: tuple[int, ...] = STRIDES
    """Of the pyramid, fixed by the architecture: the backbone's four, and a last level that subsamples the
    one before and serves the RPN only."""
    rpn: RPNConfig = RPNConfig()
    roi_head: RoIHeadConfig = RoIHeadConfig()
    ignore_iof: Fraction = 0.0
    """Anchors and proposals of which more than this share lies in a region to ignore (a crowd region, a
    difficult object) are neither objects nor background; 0 leaves the regions out of training, as the zoo
    does."""
    num_classes: Annotated[int, Range(1, 100_000)] = 80

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.strides == STRIDES, "strides", f"{STRIDES}, which the architecture fixes")
        head = self.roi_head
        inputs = self.fpn_channels * head.pool_size**2
        weights = head.fc_channels * (inputs + head.fc_channels + 5 * self.num_classes)
        self._expect(weights <= LARGEST_BOX_HEAD, "roi_head", f"one of at most {LARGEST_BOX_HEAD} weights")


MAX_INPUT = 1 << 26
"""Pixels of the network's input: at 8192x8192 the first layer's result alone takes 4 GB."""


@dataclass(frozen=True)
class DataConfig(Checked):
    """From an image to the network's input."""

    size: tuple[Pixels, Pixels] = (1333, 800)
    """(long side, short side) that an image is shrunk or enlarged to fit, keeping its aspect ratio."""
    train_short_sides: Annotated[tuple[Pixels, ...], Range(1, 1000)] = (800,)
    """Short sides drawn at random while training (multi-scale training)."""
    mean: Annotated[tuple[Level, ...], Range(1, 32)] = (123.675, 116.28, 103.53)
    """Per channel, in the order the network sees them. As many numbers as the images have channels: other
    than three are of arrays and .npy files, in their order."""
    std: Annotated[tuple[Positive, ...], Range(1, 32)] = (58.395, 57.12, 57.375)
    rgb: bool = True
    """Whether the network sees RGB (pytorch style) or BGR (caffe style), or other channels as they come."""
    pad_divisor: Annotated[int, Range(1, 1024)] = 32
    flip: Fraction = 0.5
    """Probability of a horizontal flip while training."""
    scale_jitter: tuple[Positive, Positive] = (1.0, 1.0)
    """While training an image is resized to a random factor of this range times the size that it would have,
    and cut to that size where it is larger (large-scale jitter, Ghiasi et al. 2021: 0.1, 2)."""
    crop: Fraction = 0.0
    """Probability that training cuts out a random part, of half to all of each side, before resizing."""
    color_jitter: Fraction = 0.0
    """While training brightness, contrast and saturation change by a random factor of 1 minus to 1 plus this,
    and the hue turns by up to a tenth of this."""
    reduced_decoding: bool = False
    """Whether training decodes JPEG files that are at least twice as large as it needs them to a half, a
    quarter or an eighth of their size: several times as fast, and smoother than what detection sees."""
    repeat_rare: Fraction = 0.0
    """Images of classes that less than this share of all images have are drawn more often, by the square root
    of how rare they are (Gupta et al. 2019: 0.001 for LVIS); others less, as an epoch stays as long."""
    min_image_side: Annotated[int, Range(0, 32768)] = 32
    """Training drops images with a smaller side."""
    keep_empty: bool = False
    """Whether images without boxes are trained on, as nothing but background."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.size[0] >= self.size[1], "size", "the long side first")
        self._expect(self.size[0] * self.size[1] <= MAX_INPUT, "size", f"at most {MAX_INPUT} pixels in all")
        other = "mean" if len(self.std) == 3 else "std"
        self._expect(len(self.std) == len(self.mean), other, "as many numbers in mean as in std")
        self._expect(self.channels == 3 or not self.rgb, "rgb", "False for other than three channels")
        self._expect(self.channels == 3 or not self.color_jitter, "color_jitter", "0 but for three channels")
        self._expect(self.scale_jitter[0] <= self.scale_jitter[1], "scale_jitter", "the smaller factor first")
        self._expect(self.scale_jitter[1] <= 4, "scale_jitter", "factors of at most 4")

    @property
    def channels(self) -> int:
        """Of an image."""
        return len(self.mean)


@dataclass(frozen=True)
class ScheduleConfig(Checked):
    """The optimizer, and its learning rate from step to step: a linear warm-up, then a decay."""

    epochs: Count = 12
    optimizer: Literal["sgd", "adamw"] = "sgd"
    decay_shape: Literal["step", "cosine"] = "step"
    """step: at `decay_epochs`; cosine: half a cosine from the full rate to zero at the end."""
    decay_epochs: Annotated[tuple[Count, ...], Range(0, 1000)] = (8, 11)
    """After each of these epochs the learning rate is multiplied by `decay`."""
    decay: Fraction = 0.1
    lr: NotNegative = 0.02
    """Learning rate for `lr_batch` images per step; scaled linearly for other batches."""
    lr_batch: Count = 16
    images_per_process: Count = 2
    """In a batch."""
    accumulate: Annotated[int, Range(1, 1000)] = 1
    """Batches whose mean gradient is one step."""
    momentum: Fraction = 0.9
    """Of SGD; AdamW's first beta, whose second is 0.999."""
    weight_decay: NotNegative = 1e-4
    warmup_iterations: Annotated[int, Range(0, 1_000_000_000)] = 500
    warmup_factor: Fraction = 0.001
    clip_grad_norm: Positive | None = None
    ema: Fraction = 0.0
    """Weights are averaged exponentially with this decay (0.999, say), and the averages are what is evaluated
    and what best.pth holds; 0 does without."""
    patience: Annotated[int, Range(0, 1_000_000)] = 0
    """Training ends after so many evaluations without a better AP; 0 never does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = list(self.decay_epochs) == sorted(self.decay_epochs)
        self._expect(rising, "decay_epochs", "epochs in rising order")
        self._expect(self.ema < 1, "ema", "less than 1")


@dataclass(frozen=True)
class ViewConfig(Checked):
    """Which views of an image the network sees; by default the one of its recipe."""

    tile: Pixels | None = None
    """Side of square parts in pixels of the original, seen beside the whole image: for small objects in large
    images."""
    overlap: Annotated[float, Range(0, 0.9)] = 0.2
    """Share of a tile's side that the next one repeats; objects up to this size are whole in one of them."""
    scales: Annotated[tuple[Positive, ...], Range(1, 16)] = (1.0,)
    """Factors of the recipe's size."""
    flip: bool = False
    """Whether each view is seen mirrored too."""
    nms_iou: Fraction = 0.5
    """Of detections of a class in several views that overlap by more than this, the best stays."""


@dataclass(frozen=True)
class Published(Checked):
    """What MMDetection's zoo publishes for a recipe."""

    box_ap: Annotated[float, Range(0, 100)]
    memory_gb: Positive | None = None
    """Training memory per GPU at 2 images."""
    fps: Positive | None = None
    """Images per second on one V100, batch 1, post-processing included, loading excluded."""
    checkpoint: str = ""
    """Path of the file under the published model store; its last eight hex digits begin its sha256."""


@dataclass(frozen=True)
class Recipe(Checked):
    """A named Faster R-CNN: model, data, schedule and, for the zoo, the published figures."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    published: Published | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = re.fullmatch(r"[^/\\\0]{1,200}", self.name) and self.name not in (".", "..")
        self._expect(bool(plain), "name", "a name that a folder may have")
