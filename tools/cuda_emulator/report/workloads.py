"""What R-50-FPN asks of the operators at 800x1344: one image in detection, two in training.

Sizes and boxes are those of benchmarks/op_cases.py, boxes around random objects; features are random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from cases import EMULATED

import frcnn_ops
from benchmarks.op_cases import CHANNELS, ONES, RATIOS, STRIDES, Image

STDS = (0.1, 0.1, 0.2, 0.2)
FINEST = 56.0


@dataclass(frozen=True)
class Workload:
    """An operator's call. `scale`: how many times as much the real workload is."""

    name: str
    run: Callable[[], object]
    scale: int = 1


def call(op: str, **arguments: object) -> Callable[[], object]:
    return lambda: EMULATED[op](**arguments)


def objects(image: Image, count: int, images: int) -> np.ndarray:
    return np.stack([image.objects(count).numpy() for _ in range(images)])


def half(*shape: int) -> np.ndarray:
    """The bits of random numbers in float16."""
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16).view(np.uint16)


def proposals(image: Image, segments: int, count: int) -> dict[str, object]:
    parts = [image.proposals(count) for _ in range(segments)]
    boxes, scores = (torch.stack(p).numpy() for p in zip(*parts, strict=True))
    return {"boxes": boxes, "scores": scores}


def workloads() -> list[Workload]:
    image = Image(800, 1344, torch.device("cpu"))
    sizes = image.level_sizes(5)
    flat = [n for size in sizes for n in size]
    shape = {"strides": STRIDES, "scales": (8.0,), "ratios": RATIOS, "center_offset": 0.0}
    levels = EMULATED["grid_anchors"](flat, STRIDES, (8.0,), RATIOS, 0.0)
    anchors = np.concatenate(levels) if isinstance(levels, list) else levels
    rng = np.random.default_rng(0)
    result = [Workload(f"anchors, {len(anchors)}", call("grid_anchors", sizes=flat, **shape))]

    def assign(name: str, boxes: np.ndarray, gts: int, positive: float, low_quality: bool) -> Workload:
        settings = {
            "pos_iou": positive, "neg_iou": min(positive, 0.5) if positive < 0.6 else 0.3, "min_pos_iou": 0.3,
            "match_low_quality": low_quality, "ignore_iof": -1.0, "ignore": None, "ignore_counts": None,
        }  # fmt: skip
        found = objects(image, gts, 1)
        return Workload(
            name, call("assign_max_iou", boxes=boxes, gts=found, gt_counts=np.array([gts]), **settings), 2
        )

    result.append(assign("training: assign anchors, 2 images, 100 gts", anchors, 100, 0.7, True))
    result.append(assign("training: assign anchors, 2 images, 10 gts", anchors, 10, 0.7, True))

    for name, images, most in (("detection", 1, 1000), ("training", 2, 2000)):
        extent = np.array([[800, 1344]] * images, np.float32)
        logits = [rng.standard_normal((images, 3, h, w), np.float32) for h, w in sizes]
        refined = [rng.standard_normal((images, 12, h, w), np.float32) * 0.3 for h, w in sizes]
        result.append(
            Workload(
                f"{name}: select proposals, {images} x {len(anchors)} anchors",
                call("select_proposals", logits=logits, deltas=refined,
                     image_sizes=extent, **shape, stds=ONES, min_size=0.0, iou_threshold=0.7, pre_nms=most,
                     count=1000),
            )
        )  # fmt: skip
        boxes = proposals(image, images * 5, most)
        result.append(
            Workload(
                f"{name}: NMS of {images * 5} levels of {most}",
                call("nms_padded", **boxes, iou_threshold=0.7, max_keep=most),
            )
        )

    logits = rng.standard_normal((1, 1000, 81), np.float32) * 2 + np.eye(81, dtype=np.float32)[80] * 6
    result.append(
        Workload(
            "detection: select detections, 1000 proposals of 80 classes",
            call("select_detections", probabilities=torch.from_numpy(logits).softmax(-1).numpy(),
                 deltas=rng.standard_normal((1, 1000, 320), np.float32),
                 proposals=image.proposals(1000)[0].numpy()[None], present=np.ones((1, 1000), bool),
                 sizes=np.array([[800, 1344]], np.float32), scales=np.ones((1, 2), np.float32), stds=STDS,
                 score_threshold=0.05, iou_threshold=0.5, max_detections=100),
        )
    )  # fmt: skip
    rest = proposals(image, 80, 1000)
    rest["scores"] = np.where(rng.random((80, 1000)) < 0.01, rest["scores"], -np.inf).astype(np.float32)
    result.append(
        Workload(
            "detection: NMS of 80 classes of 1000, 1 % present",
            call("nms_padded", **rest, iou_threshold=0.5, max_keep=100),
        )
    )
    large, scores = (x.numpy() for x in image.proposals(20000))
    result.append(
        Workload(
            "NMS of 20,000 boxes, 80 classes",
            call("nms_large", boxes=large, scores=scores, groups=np.arange(20000) % 80, iou_threshold=0.5),
        )
    )
    rois = image.proposals(512)[0].numpy()
    targets = image.proposals(512)[0].numpy()
    codes = rng.standard_normal((512, 320), np.float32)
    result.append(
        Workload(
            "detection: decode 512 x 80",
            call("decode_boxes", boxes=rois, deltas=codes, stds=STDS, max_shape=None),
        )
    )
    result.append(
        Workload("training: encode 512", call("encode_boxes", boxes=rois, targets=targets, stds=STDS))
    )
    result.append(Workload("box IoU, 100 x anchors", call("box_iou", a=objects(image, 100, 1)[0], b=anchors)))
    pairs = {
        "pred": rois, "target": targets, "weight": None, "boxes": None, "stds": STDS, "mode": "giou",
        "eps": 1e-7, "beta": 0.0, "reduction": "mean",
    }  # fmt: skip
    result.append(Workload("training: GIoU loss of 512", call("iou_loss", **pairs)))
    grad = np.ones((), np.float32)
    result.append(Workload("training: GIoU gradient of 512", call("iou_loss_backward", grad=grad, **pairs)))
    result += pooling(image)
    result += of_training(image, torch.from_numpy(anchors))
    result += of_maps(image)
    return result


def of_training(image: Image, anchors: torch.Tensor) -> list[Workload]:
    """Sampling and losses of two images with ten objects each."""
    rng, sizes = np.random.default_rng(1), image.level_sizes(5)
    gts, tens = torch.stack([image.objects(10) for _ in range(2)]), torch.tensor([10, 10])
    gt_index, _ = frcnn_ops.assign_max_iou(anchors, gts, 0.7, 0.3, 0.3, gt_counts=tens)
    index, counts = frcnn_ops.sample_anchors(gt_index, torch.tensor(1), 256, 128)
    rpn = {
        "maps": [rng.standard_normal((2, 15, h, w), np.float32) for h, w in sizes],
        "anchors": anchors.numpy(), "gts": gts.numpy(), "gt_index": gt_index.numpy(), "index": index.numpy(),
        "counts": counts.numpy(), "stds": ONES, "kind": "float32", "channels_last": True,
    }  # fmt: skip
    boxes, scores = (torch.stack(x) for x in zip(*(image.proposals(1000) for _ in range(2)), strict=True))
    of_roi, _ = frcnn_ops.assign_max_iou(boxes, gts, 0.5, 0.5, 0.5, gt_counts=tens, match_low_quality=False)
    drawn = {
        "proposals": boxes, "scores": scores, "gt_index": of_roi, "gts": gts,
        "gt_labels": torch.arange(20).view(2, 10), "gt_counts": tens, "seed": torch.tensor(1),
    }  # fmt: skip
    rois, labels, targets, numbers = frcnn_ops.sample_proposals(*drawn.values(), 512, 128, 80)
    head = {
        "outputs": rng.standard_normal((1024, 401), np.float32), "labels": labels.numpy(),
        "rois": rois.numpy(), "targets": targets.numpy(), "counts": numbers.numpy(), "stds": STDS,
        "classes": 80, "mode": "l1", "weight": 1.0, "kind": "float32",
    }  # fmt: skip
    grads = {"by_class": np.ones((), np.float32), "by_box": np.ones((), np.float32)}
    sampled = {name: x.numpy() for name, x in drawn.items()} | {"seed": 1}
    calls = {
        "sample 256 anchors": call(
            "sample_anchors", gt_index=gt_index.numpy(), seed=1, samples=256, most_positive=128
        ),
        "sample 512 proposals": call(
            "sample_proposals", **sampled, samples=512, most_positive=128, background=80
        ),
        "the RPN's losses": call("rpn_loss", **rpn),
        "the RPN's gradients": call("rpn_loss_backward", **grads, **rpn),
        "the box head's losses": call("box_head_loss", **head),
        "the box head's gradients": call("box_head_loss_backward", **grads, **head),
    }
    return [Workload(f"training: {name}, 2 images", run) for name, run in calls.items()]


def of_maps(image: Image) -> list[Workload]:
    """What passes over images, maps and weights; parts of the largest ones, as they repeat."""
    rng = np.random.default_rng(2)
    quarter = rng.integers(0, 256, (200, 1344, 3), dtype=np.uint8)
    pixels = {"images": quarter[None], "sizes": np.array([[200, 1333]], np.float32), "kind": "half"}
    colors = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375), "rgb": True}
    height, width = 50, 84
    maps = {"x": half(1, CHANNELS, height, width), "add": half(1, CHANNELS, height, width)}
    block = [(64, 64, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1)]
    norms = {
        name: [rng.random(shape[0], np.float32) for shape in block]
        for name in ("gains", "shifts", "means", "variances")
    }
    weights = {"weights": [rng.standard_normal(shape, np.float32) for shape in block], **norms, "eps": 1e-5}
    grads = [half(*shape) for shape in block] + [half(shape[0]) for shape in block]
    of_weights = 23_454_912 // sum(weight.size for weight in weights["weights"])  # R-50's convolutions
    resized = call("resize_images", images=[quarter[:150, :1000]], sizes=[200, 1333], height=200, width=1344)
    return [
        Workload("detection: normalize an image", call("normalize_images", **pixels, **colors), 4),
        Workload("resize an image of 600 x 1000", resized, 4),
        Workload(
            "detection: bias, sum and ReLU of the finest map",
            call("conv_epilogue", **maps, bias=half(CHANNELS), relu=True, kind="half"), 16,
        ),
        Workload(
            "training: mask and sum a gradient, stride 16, 2 images",
            call("relu_bias_gradient", grad=half(2, CHANNELS, height, width),
                 out=half(2, CHANNELS, height, width), kind="half"),
        ),
        Workload("training: fold R-50's norms", call("fold_norms", **weights, kind="half"), of_weights),
        Workload(
            "training: gradients of R-50's folded norms",
            call("fold_norms_backward", grads=grads, **weights, kind="half"), of_weights,
        ),
    ]  # fmt: skip


def pooling(image: Image) -> list[Workload]:
    sizes = image.level_sizes(4)
    settings = {
        "scales": [1 / s for s in STRIDES[:4]], "sampling_ratio": 0, "aligned": True, "finest_scale": FINEST,
        "kind": "half",
    }  # fmt: skip
    one = [half(1, CHANNELS, h, w) for h, w in sizes]
    result = []
    for name, count, times in (("detection: RoIAlign, 1000 RoIs", 1000, 1),
                               ("training: RoIAlign, 2 x 512 RoIs", 512, 2)):  # fmt: skip
        rois = image.rois(1, count).numpy()
        forward = call(
            "roi_align", features=one, rois=rois, output_size=(7, 7), channels_last=True, **settings
        )
        result.append(Workload(name, forward, times))
    flat = [n for size in sizes for n in size]
    grad = half(1024, CHANNELS, 7, 7)

    def around(objects: torch.Tensor) -> torch.Tensor:
        few = objects[torch.arange(1024) % len(objects)]
        sizes = (few[:, 2:] - few[:, :2]).repeat(1, 2)
        moved = few + torch.randn(1024, 4, generator=image.generator) * 0.1 * sizes
        return torch.cat([torch.arange(1024)[:, None] // 512, moved], dim=1)

    one_small = torch.tensor([[600.0, 400.0, 624.0, 424.0]])
    for name, rois in (
        ("", image.rois(2, 512)),
        (" around 7 objects", around(image.objects(7))),
        (" around one small object", around(one_small)),
    ):
        backward = call("roi_align_backward", grad=grad, rois=rois.numpy(), sizes=flat, batch=2, **settings)
        result.append(Workload(f"training: RoIAlign gradient, 2 x 512 RoIs{name}", backward))
    return result
