"""A small recipe that trains from scratch on a CPU in minutes."""

from __future__ import annotations

from frcnn.config import (
    BackboneConfig,
    DataConfig,
    ModelConfig,
    Recipe,
    RoIHeadConfig,
    RPNConfig,
    ScheduleConfig,
)


def small_r18_fpn() -> Recipe:
    """An R-18-FPN with slim heads for images of about 320x240 pixels.

    It needs no pretrained weights: every norm trains, on batches of 8. Anchors are half the zoo's size, since
    a small image's objects are small, and fewer proposals do for the few objects that it has room for.
    """
    return Recipe(
        name="small_r18_fpn",
        model=ModelConfig(
            backbone=BackboneConfig(depth=18, frozen_stages=-1, norm_eval=False),
            fpn_channels=64,
            rpn=RPNConfig(
                scales=(4.0,),
                samples=128,
                pre_nms_train=500,
                pre_nms_test=300,
                post_nms_train=300,
                post_nms_test=200,
            ),
            roi_head=RoIHeadConfig(sampling_ratio=2, finest_scale=28.0, fc_channels=256, samples=128),
        ),
        data=DataConfig(size=(320, 240), train_short_sides=(240,)),
        schedule=ScheduleConfig(
            epochs=12,
            decay_epochs=(9, 11),
            lr=0.02,
            lr_batch=8,
            images_per_process=8,
            warmup_iterations=50,
            warmup_factor=0.1,
            clip_grad_norm=10.0,
        ),
    )
