"""The published training logs are where the zoo's README links them."""

from frcnn.checkpoint.download import checkpoint_addresses
from frcnn.zoo.recipes import list_recipes, recipe
from frcnn.zoo.table import describe, log_path

PUBLISHED = """
    faster_rcnn_r50_caffe_fpn_1x_coco/faster_rcnn_r50_caffe_fpn_1x_coco_20200504_180032
    faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130_204655
    faster_rcnn_r50_fpn_2x_coco/faster_rcnn_r50_fpn_2x_coco_20200504_210434
    faster_rcnn_r101_caffe_fpn_1x_coco/faster_rcnn_r101_caffe_fpn_1x_coco_20200504_180057
    faster_rcnn_r101_fpn_1x_coco/faster_rcnn_r101_fpn_1x_coco_20200130_204655
    faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_20200504_210455
    faster_rcnn_x101_32x4d_fpn_1x_coco/faster_rcnn_x101_32x4d_fpn_1x_coco_20200203_000520
    faster_rcnn_x101_32x4d_fpn_2x_coco/faster_rcnn_x101_32x4d_fpn_2x_coco_20200506_041400
    faster_rcnn_x101_64x4d_fpn_1x_coco/faster_rcnn_x101_64x4d_fpn_1x_coco_20200204_134340
    faster_rcnn_x101_64x4d_fpn_2x_coco/faster_rcnn_x101_64x4d_fpn_2x_coco_20200512_161033
    faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_iou_1x_coco_20200506_095954
    faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_giou_1x_coco_20200505_161120
    faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_bounded_iou_1x_coco_20200505_160738
    faster_rcnn_r50_caffe_fpn_mstrain_2x_coco/faster_rcnn_r50_caffe_fpn_mstrain_2x_coco_20200504_231813
    faster_rcnn_r50_caffe_fpn_mstrain_3x_coco/faster_rcnn_r50_caffe_fpn_mstrain_3x_coco_20200504_163323
"""


def test_every_recipe_has_its_log():
    expected = [f"v2.0/faster_rcnn/{path}.log.json" for path in PUBLISHED.split()]
    assert [log_path(recipe(name)) for name in list_recipes()] == expected
    assert log_path(recipe("small_r18_fpn")) == ""


def test_a_recipe_in_full_tells_the_address():
    entry = recipe("faster_rcnn_r50_fpn_giou_1x_coco")
    assert f"\nlog: {checkpoint_addresses(log_path(entry))[0]}" in describe(entry)
    assert "\nlog:" not in describe(recipe("small_r18_fpn"))
