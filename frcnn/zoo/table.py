"""``frcnn models``: the published table, or one resolved recipe."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Literal

from frcnn.checkpoint.download import checkpoint_addresses, sha256_prefix
from frcnn.config import Recipe
from frcnn.zoo.recipes import list_recipes, recipe

LOGS = {
    "faster_rcnn_r50_caffe_fpn_1x_coco": "20200504_180032",
    "faster_rcnn_r50_fpn_1x_coco": "20200130_204655",
    "faster_rcnn_r50_fpn_2x_coco": "20200504_210434",
    "faster_rcnn_r101_caffe_fpn_1x_coco": "20200504_180057",
    "faster_rcnn_r101_fpn_1x_coco": "20200130_204655",
    "faster_rcnn_r101_fpn_2x_coco": "20200504_210455",
    "faster_rcnn_x101_32x4d_fpn_1x_coco": "20200203_000520",
    "faster_rcnn_x101_32x4d_fpn_2x_coco": "20200506_041400",
    "faster_rcnn_x101_64x4d_fpn_1x_coco": "20200204_134340",
    "faster_rcnn_x101_64x4d_fpn_2x_coco": "20200512_161033",
    "faster_rcnn_r50_fpn_iou_1x_coco": "20200506_095954",
    "faster_rcnn_r50_fpn_giou_1x_coco": "20200505_161120",
    "faster_rcnn_r50_fpn_bounded_iou_1x_coco": "20200505_160738",
    "faster_rcnn_r50_caffe_fpn_mstrain_2x_coco": "20200504_231813",
    "faster_rcnn_r50_caffe_fpn_mstrain_3x_coco": "20200504_163323",
}
"""When a published training began: so ends its log's name, while a checkpoint's may leave it out."""


def log_path(entry: Recipe) -> str:
    """Path of a recipe's published training log in the model store, beside its checkpoint; "" without one."""
    if entry.name not in LOGS or entry.published is None:
        return ""
    return f"{entry.published.checkpoint.rpartition('/')[0]}/{entry.name}_{LOGS[entry.name]}.log.json"


def models(name: str | None = None) -> None:
    """Print the zoo's table, or everything about the recipe ``name``.

    Raises:
        UnknownRecipe: no recipe has that name, a KeyError.
    """
    print(describe(recipe(name)) if name else table())


def table() -> str:
    """The published figures of every recipe, one per line, and the small recipe, which has none.

    Mem: training memory per GPU at 2 images; fps: one V100, batch 1; AP: box AP on COCO val2017.
    """
    titles = ("recipe", "backbone", "style", "epochs", "box loss", "Mem GB", "fps", "box AP")
    rows: list[tuple[str, ...]] = [titles]
    for entry in map(recipe, [*list_recipes(), "small_r18_fpn"]):
        backbone = entry.model.backbone
        rows.append(
            (
                entry.name,
                _backbone_name(entry),
                backbone.style,
                str(entry.schedule.epochs),
                entry.model.roi_head.box_loss,
                _figure(entry, "memory_gb"),
                _figure(entry, "fps"),
                _figure(entry, "box_ap"),
            )
        )
    return (
        _aligned(rows) + "\nPublished by MMDetection: COCO 2017; Mem at 2 images per GPU; fps on one V100. "
        "small_r18_fpn is ours,\nto train from nothing on a CPU."
    )


def describe(entry: Recipe) -> str:
    """Every field of a recipe, and where its checkpoint is."""
    lines = [entry.name]
    for part in ("model", "data", "schedule", "published"):
        value = getattr(entry, part)
        if value is not None:
            lines += [f"{part}:", *_nested(value, indent=2)]
    if entry.published is not None and entry.published.checkpoint:
        lines.append(f"checkpoint: {checkpoint_addresses(entry.published.checkpoint)[0]}")
        lines.append(f"checkpoint sha256 begins: {sha256_prefix(entry.published.checkpoint)}")
        if path := log_path(entry):
            lines.append(f"log: {checkpoint_addresses(path)[0]}")
    return "\n".join(lines)


def _backbone_name(entry: Recipe) -> str:
    backbone = entry.model.backbone
    if backbone.groups == 1:
        return f"R-{backbone.depth}-FPN"
    return f"X-{backbone.depth}-{backbone.groups}x{backbone.base_width}d-FPN"


def _figure(entry: Recipe, name: Literal["memory_gb", "fps", "box_ap"]) -> str:
    value: float | None = getattr(entry.published, name, None)
    return "-" if value is None else f"{value:.1f}"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Columns padded to their widest cell; the last three hold numbers and align right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = len(widths) - 3
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column >= numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _nested(value: object, indent: int) -> list[str]:
    lines = []
    for entry in fields(value):  # type: ignore[arg-type]
        inner = getattr(value, entry.name)
        if is_dataclass(inner):
            lines += [f"{' ' * indent}{entry.name}:", *_nested(inner, indent + 2)]
        else:
            lines.append(f"{' ' * indent}{entry.name}: {inner}")
    return lines
