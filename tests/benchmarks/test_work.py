from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import frcnn
from benchmarks.work import STAGES, Work, floor, operations, parameter_count, stage_work
from frcnn.detector import FasterRCNN

R50 = frcnn.recipe("faster_rcnn_r50_fpn_1x_coco")


def gflop(work, *stages):
    return sum(layer.operations for stage in stages for layer in work[stage]) / 1e9


def test_r50_counts_what_mmdetection_publishes():
    """207.07 G multiply-adds and 41.53 M parameters for a 1280x800 image, without RoIAlign and NMS."""
    work = stage_work(R50, 1, 800, 1280)
    assert tuple(work) == STAGES
    assert gflop(work, "backbone", "FPN", "RPN", "head") / 2 == pytest.approx(207.07, rel=0.01)
    with torch.device("meta"):
        assert parameter_count(FasterRCNN(R50.model)) / 1e6 == pytest.approx(41.53, rel=0.01)


def test_layers_agree_with_torch_s_own_counter():
    work = stage_work(R50, 2, 128, 160)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = FasterRCNN(R50.model).eval()
        features = model.neck(model.backbone(torch.empty(2, 3, 128, 160)))
        model.rpn_head(features)
        model.roi_head.bbox_head(torch.empty(2000, 256, 7, 7))
    assert gflop(work, "backbone", "FPN", "RPN", "head") == pytest.approx(counter.get_total_flops() / 1e9)


@pytest.mark.parametrize("name", frcnn.list_recipes())
def test_every_recipe_has_operations(name):
    expected = {"R-50": 432, "R-101": 591, "X-32": 599, "X-64": 920}
    backbone = frcnn.recipe(name).model.backbone
    kind = f"R-{backbone.depth}" if backbone.groups == 1 else f"X-{backbone.groups}"
    caffe = 10 if backbone.style == "caffe" else 0  # strides earlier, so it computes less
    assert operations(frcnn.recipe(name), 800, 1333) / 1e9 == pytest.approx(expected[kind] - caffe, abs=1)


def test_roi_align_samples_by_the_box_s_size():
    rois = torch.tensor([[0.0, 0, 27, 27], [0, 0, 100, 50]])  # 7x7 and 25x12.5 cells of the finest level
    work = stage_work(R50, 1, 128, 160, rois)["RoIAlign"][0]
    samples = 49 * (1 * 1 + 4 * 2)
    assert work.operations == 8 * 256 * samples
    half = stage_work(R50, 1, 128, 160, rois, element_bytes=2)["RoIAlign"][0]
    assert half.bytes == work.bytes / 2
    coarse = torch.tensor([[0.0, 0, 448, 448]])  # level 3: 14x14 cells
    assert stage_work(R50, 1, 512, 512, coarse)["RoIAlign"][0].operations == 8 * 256 * 49 * 4
    fixed = replace(R50, model=replace(R50.model, roi_head=replace(R50.model.roi_head, sampling_ratio=3)))
    assert stage_work(fixed, 1, 512, 512, coarse)["RoIAlign"][0].operations == 8 * 256 * 49 * 9


def test_floor_takes_the_slower_of_arithmetic_and_memory_in_each_layer():
    layers = [Work(operations=100, bytes=1), Work(operations=1, bytes=100)]
    assert floor(layers, matrix_rate=10, bandwidth=20) == pytest.approx(100 / 10 + 100 / 20)
