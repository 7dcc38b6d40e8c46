"""A reference case: a file of arrays that MMDetection 3.3.0 computed, and the network that they are of.

The weights are not in the file: they are drawn here, by name and seed, as they were drawn there. Small cases
for every kind of model come with the package (`frcnn/zoo/cases`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from frcnn.config import ModelConfig, Recipe
from frcnn.preprocess import normalize, pad
from frcnn.structures import Batch
from frcnn.zoo.recipes import recipe

CASES = Path(__file__).parent / "cases"

# An output layer's weights are scaled so that scores and deltas vary without saturating.
_OUTPUT_GAIN = {"rpn_cls": 0.15, "rpn_reg": 0.05, "fc_cls": 0.4, "fc_reg": 0.4}


def case_names(folder: Path) -> list[str]:
    """Names of the folder's model cases (files that hold a ``batch_shape``)."""
    names = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as case:
            if "batch_shape" in case:
                names.append(path.stem)
    return names


def case_recipe(name: str) -> Recipe:
    """The recipe that a case was computed with, by the beginning of its name ("r50_caffe", "r101", …).

    Raises:
        ValueError: no recipe is known for the name.
    """
    known = {
        "r50": "faster_rcnn_r50_fpn_1x_coco",
        "r50_caffe": "faster_rcnn_r50_caffe_fpn_1x_coco",
        "r101": "faster_rcnn_r101_fpn_1x_coco",
        "r101_caffe": "faster_rcnn_r101_caffe_fpn_1x_coco",
        "x101_32x4d": "faster_rcnn_x101_32x4d_fpn_1x_coco",
        "x101_64x4d": "faster_rcnn_x101_64x4d_fpn_1x_coco",
        "r50_iou": "faster_rcnn_r50_fpn_iou_1x_coco",
        "r50_giou": "faster_rcnn_r50_fpn_giou_1x_coco",
        "r50_bounded_iou": "faster_rcnn_r50_fpn_bounded_iou_1x_coco",
        "r50_caffe_mstrain_2x": "faster_rcnn_r50_caffe_fpn_mstrain_2x_coco",
        "r50_caffe_mstrain_3x": "faster_rcnn_r50_caffe_fpn_mstrain_3x_coco",
    }
    if name == "r50_ciou" or name.startswith("r50_ciou_"):
        base = recipe(known["r50_iou"])
        # MMDetection's CIoU configuration weighs the loss by 12, its other IoU losses by 10
        roi_head = replace(base.model.roi_head, box_loss="ciou", box_loss_weight=12.0)
        return replace(base, name="r50_ciou", model=replace(base.model, roi_head=roi_head))
    matches = [key for key in known if name == key or name.startswith(f"{key}_")]
    if not matches:
        raise ValueError(f"no recipe is known for a case called {name!r}")
    return recipe(known[max(matches, key=len)])


def draw_weights(shapes: Mapping[str, tuple[int, ...]], seed: int, input_std: float) -> dict[str, Tensor]:
    """The weights of a case: each tensor drawn from a generator of its own, seeded by its name.

    Norms vary around 1 (0.2 at the end of a residual branch, so that depth does not blow up), statistics
    around (0, 1), weights have a gain of 1.4 over sqrt(fan in), biases 0.05. The first convolution is
    divided by ``input_std``, the spread of the images after normalization.
    """
    drawn = {}
    for name, shape in shapes.items():
        module, leaf = name.rsplit(".", 1)
        layer = module.rsplit(".", 1)[-1]
        generator = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
        if leaf == "num_batches_tracked":
            drawn[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if leaf == "running_var":
            values = generator.uniform(0.8, 1.2, shape)
        elif leaf == "weight" and (layer.startswith("bn") or module.endswith("downsample.1")):
            values = (0.2 if layer == "bn3" else 1.0) * generator.uniform(0.8, 1.2, shape)
        elif leaf == "weight":
            gain = _OUTPUT_GAIN.get(layer, 1.4) / np.sqrt(int(np.prod(shape[1:])))
            values = gain * generator.standard_normal(shape)
        else:
            values = 0.05 * generator.standard_normal(shape)
        drawn[name] = torch.from_numpy(np.asarray(values, dtype=np.float32).reshape(shape))
    drawn["backbone.conv1.weight"] /= input_std
    return drawn


def load_case(path: Path) -> dict[str, np.ndarray]:
    """A case's arrays; an image that the file lacks is read from ``image<i>.png`` beside it."""
    with np.load(path, allow_pickle=False) as file:
        case = {name: file[name] for name in file.files}
    for index in range(int(case["batch_shape"][0])):
        if f"image{index}" not in case:
            image = cv2.imread(str(path.parent / f"image{index}.png"))
            if image is None:
                raise FileNotFoundError(f"{path}: has no image{index}, and no image{index}.png is beside it")
            case[f"image{index}"] = image
    return case


def case_batch(case: Mapping[str, np.ndarray], entry: Recipe) -> Batch:
    """The network's input of a case, with its annotations."""
    indices = range(int(case["batch_shape"][0]))
    images = [case[f"image{index}"] for index in indices]
    return Batch(
        pad([normalize(image, entry.data) for image in images], entry.data.pad_divisor),
        tuple((image.shape[0], image.shape[1]) for image in images),
        tuple(torch.from_numpy(case[f"gt_boxes{index}"]).float() for index in indices),
        tuple(torch.from_numpy(case[f"gt_labels{index}"]).long() for index in indices),
    )


def without_sampling(entry: Recipe) -> ModelConfig:
    """The cases' training step has no randomness: it samples every candidate, and keeps 200 proposals."""
    model, everything = entry.model, 10**7
    rpn = replace(model.rpn, pre_nms_train=500, post_nms_train=200, samples=everything, pos_fraction=1.0)
    return replace(model, rpn=rpn, roi_head=replace(model.roi_head, samples=everything, pos_fraction=1.0))
