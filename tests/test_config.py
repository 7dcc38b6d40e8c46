"""Every field of every configuration is checked when it is made."""

from __future__ import annotations

import dataclasses
import typing

import pytest

import frcnn
from frcnn import config
from frcnn.config import (
    BackboneConfig,
    DataConfig,
    ModelConfig,
    Published,
    Recipe,
    RoIHeadConfig,
    RPNConfig,
    ScheduleConfig,
    ViewConfig,
)
from frcnn.zoo.small import small_r18_fpn

NAN, INF = float("nan"), float("inf")
NO_FRACTION = ("0.5", None, True, -0.1, 1.1, NAN, [0.5])
NO_COUNT = ("3", None, True, 0, -1, 2.0, NAN, 10**7)
NO_SAMPLES = (*NO_COUNT[:-1], 2 * 10**9)
NO_POSITIVE = ("3", True, 0, 0.0, -1.0, NAN, INF, 1e9, 10**400)
NO_FLAG = (0, 1, None, "yes")
NO_FOUR = (None, 0.1, (0.1,) * 3, (0.1,) * 5, [0.1] * 4, (0.1, 0.1, 0.1, 0), (0.1, 0.1, 0.1, "1"), "four")

BAD: dict[type, dict[str, tuple]] = {
    BackboneConfig: {
        "depth": (49, 50.0, "50", None, True),
        "style": ("tensorflow", "", None, 1),
        "groups": (0, -1, 1.0, None, 5000),
        "base_width": (0, -1, 64.0, None, 5000),
        "frozen_stages": (5, -2, 1.0, None, True),
        "norm_eval": NO_FLAG,
        "recompute": NO_FLAG,
        "pretrained": (5, True, ("a",)),
    },
    RPNConfig: {
        "scales": ((), 8.0, [8.0], (0,), (NAN,), ("8",), (8.0,) * 33),
        "ratios": ((), 1.0, [1.0], (-1,), (INF,), (None,), (1.0,) * 33),
        "stds": NO_FOUR,
        "pos_iou": NO_FRACTION,
        "neg_iou": (*NO_FRACTION, 0.8),
        "min_pos_iou": NO_FRACTION,
        "samples": NO_SAMPLES,
        "pos_fraction": NO_FRACTION,
        "pre_nms_train": NO_COUNT,
        "pre_nms_test": NO_COUNT,
        "post_nms_train": NO_COUNT,
        "post_nms_test": NO_COUNT,
        "nms_iou": NO_FRACTION,
        "min_size": (-1, NAN, INF, None, "1"),
    },
    RoIHeadConfig: {
        "pool_size": (0, 65, 7.0, (7, 7), None),
        "sampling_ratio": (-1, 65, 2.0, None, True),
        "finest_scale": (*NO_POSITIVE, None),
        "fc_channels": (0, -5, 1e3, None, 2**31),
        "class_agnostic": NO_FLAG,
        "stds": NO_FOUR,
        "pos_iou": NO_FRACTION,
        "neg_iou": (*NO_FRACTION, 0.6),
        "samples": NO_SAMPLES,
        "pos_fraction": NO_FRACTION,
        "box_loss": ("smooth_l1", "L1", "", None, 1),
        "box_loss_weight": (-1, NAN, INF, None, "1"),
        "score_threshold": NO_FRACTION,
        "nms_iou": (50, *NO_FRACTION),
        "max_detections": NO_COUNT,
    },
    ModelConfig: {
        "backbone": (None, {}, "resnet50", 50, RPNConfig()),
        "fpn_channels": (0, -1, 256.0, None, 10**6),
        "strides": ((8, 16, 32, 64, 128), (4, 8, 16, 32), [4, 8, 16, 32, 64], (), None, 4),
        "rpn": (None, {}, RoIHeadConfig()),
        "roi_head": (None, {}, RPNConfig(), RoIHeadConfig(pool_size=64, fc_channels=65536)),
        "ignore_iof": (-0.1, 1.5, "0.5", None),
        "num_classes": (0, -1, 80.0, None, True, 100_001),
    },
    DataConfig: {
        "size": (
            800,
            (800,),
            (1333, 800, 3),
            [1333, 800],
            (1333.0, 800),
            (0, 0),
            (800, 1333),
            (10**6, 800),
            (20000, 20000),
        ),
        "train_short_sides": ((), 800, [800], (800.0,), (0,), (True,)),
        "mean": (0, (0, 0), [1, 2, 3], (1, 2, NAN), (1, 2, None)),
        "std": (1, (1, 1), [1, 1, 1], (1, 1, 0), (1, 1, -1)),
        "rgb": NO_FLAG,
        "pad_divisor": (0, -32, 32.0, None, 5000),
        "flip": NO_FRACTION,
        "scale_jitter": (
            1.0,
            (1.0,),
            [0.5, 1.0],
            (0.5, None),
            (0.0, 1.0),
            (2.0, 0.1),
            (1.0, 5.0),
            (1.0, NAN),
        ),
        "crop": NO_FRACTION,
        "color_jitter": NO_FRACTION,
        "reduced_decoding": NO_FLAG,
        "repeat_rare": NO_FRACTION,
        "min_image_side": (-1, 32.0, None, True),
        "keep_empty": (1, 0, None, "True"),
    },
    ScheduleConfig: {
        "epochs": NO_COUNT,
        "optimizer": ("adam", "SGD", "", None, 1),
        "decay_shape": ("linear", "", None, 1),
        "decay_epochs": (8, [8, 11], (0, 8), (11, 8), (8.0,), (-1,), None),
        "decay": NO_FRACTION,
        "lr": ("0.1", None, True, -0.1, NAN, INF, 1e9),
        "lr_batch": NO_COUNT,
        "images_per_process": NO_COUNT,
        "accumulate": NO_COUNT,
        "momentum": NO_FRACTION,
        "weight_decay": (-1e-4, NAN, INF, None, "0"),
        "warmup_iterations": (-1, 500.0, None, True),
        "warmup_factor": NO_FRACTION,
        "clip_grad_norm": NO_POSITIVE,
        "ema": (*NO_FRACTION, 1.0),
        "patience": (-1, 2.0, None, True),
    },
    ViewConfig: {
        "tile": (0, -1, 640.0, (640, 640), True, "640"),
        "overlap": (*NO_FRACTION, 0.95),
        "scales": ((), 1.0, [1.0], (0,), (NAN,), ("1",), (1.0,) * 17),
        "flip": NO_FLAG,
        "nms_iou": NO_FRACTION,
    },
    Published: {
        "box_ap": (-1, 101, NAN, None, "37"),
        "memory_gb": NO_POSITIVE,
        "fps": NO_POSITIVE,
        "checkpoint": (None, 5, b"x"),
    },
    Recipe: {
        "name": (None, 5, "", "..", "a/b", "../../a", "a\\b", "a\0", "x" * 201),
        "model": (None, [], {}, DataConfig()),
        "data": (None, [], {}, ModelConfig()),
        "schedule": (None, [], {}, 12),
        "published": ([], {}, 37.4, ModelConfig()),
    },
}
CASES = [
    pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{number}")
    for kind, fields in BAD.items()
    for name, values in fields.items()
    for number, value in enumerate(values)
]
REQUIRED = {Recipe: {"name": "mine"}, Published: {"box_ap": 37.4}}


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_a_wrong_value_is_named(kind, name, value):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}\.{name} is .+, expected ") as caught:
        kind(**{**REQUIRED.get(kind, {}), name: value})
    assert len(str(caught.value)) < 300


def test_every_field_of_every_class_has_a_wrong_value():
    classes = {kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)} - {config.Range}
    assert classes == set(BAD)
    for kind in classes:
        assert list(BAD[kind]) == [field.name for field in dataclasses.fields(kind)]


def test_every_choice_is_accepted():
    for depth in (18, 34, 50, 101, 152):
        BackboneConfig(depth=depth)
    for box_loss in typing.get_args(config.BoxLoss):
        RoIHeadConfig(box_loss=box_loss, nms_iou=1, score_threshold=0)
    ScheduleConfig(epochs=1, decay_epochs=(), clip_grad_norm=None, decay=1, momentum=0, warmup_iterations=0)


def test_messages_say_what_is_expected():
    for make, message in (
        (lambda: RoIHeadConfig(nms_iou=50), "RoIHeadConfig.nms_iou is 50, expected a number from 0 to 1"),
        (
            lambda: BackboneConfig(style="detectron"),
            "BackboneConfig.style is 'detectron', expected one of 'pytorch', 'caffe'",
        ),
        (
            lambda: BackboneConfig(frozen_stages=5),
            "BackboneConfig.frozen_stages is 5, expected a whole number from -1 to 4",
        ),
        (
            lambda: DataConfig(size=[1333, 800]),
            "DataConfig.size is [1333, 800], expected a tuple of 2 whole numbers from 1 to 32768",
        ),
        (
            lambda: RPNConfig(scales=()),
            "RPNConfig.scales is (), expected a tuple of numbers from 1e-09 to 1e+06, of length 1 to 32",
        ),
        (
            lambda: ModelConfig(strides=(8, 16)),
            "ModelConfig.strides is (8, 16), expected (4, 8, 16, 32, 64), which the architecture fixes",
        ),
        (
            lambda: ScheduleConfig(clip_grad_norm=0),
            "ScheduleConfig.clip_grad_norm is 0, expected a number from 1e-09 to 1e+06 or None",
        ),
        (
            lambda: ModelConfig(backbone="resnet50"),
            "ModelConfig.backbone is 'resnet50', expected a BackboneConfig",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert str(caught.value) == message


def test_replacing_a_field_checks_it_too():
    recipe = small_r18_fpn()
    with pytest.raises(ValueError, match=r"ScheduleConfig\.epochs is 0"):
        dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, epochs=0))


def test_every_recipe_of_ours_is_accepted():
    assert len([frcnn.recipe(name) for name in frcnn.list_recipes()]) == 15
    small_r18_fpn()
