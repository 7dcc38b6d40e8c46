"""A recipe whose training steps take milliseconds."""

from frcnn.config import (
    BackboneConfig,
    DataConfig,
    ModelConfig,
    Recipe,
    RoIHeadConfig,
    RPNConfig,
    ScheduleConfig,
)

STAGE_CHANNELS = (16, 16, 32, 32)
"""To be put in the place of frcnn.backbone's: a ResNet-18 of few channels."""


def tiny_recipe() -> Recipe:
    return Recipe(
        "tiny",
        ModelConfig(
            backbone=BackboneConfig(depth=18, frozen_stages=-1, norm_eval=False),
            fpn_channels=16,
            rpn=RPNConfig(scales=(3.0,), samples=32, pre_nms_train=100, post_nms_train=50, post_nms_test=50),
            roi_head=RoIHeadConfig(sampling_ratio=2, finest_scale=16.0, fc_channels=32, samples=32),
        ),
        DataConfig(size=(64, 48), train_short_sides=(40, 48)),
        ScheduleConfig(
            epochs=2, decay_epochs=(1,), lr=0.02, lr_batch=2, images_per_process=2, warmup_iterations=3
        ),
    )
