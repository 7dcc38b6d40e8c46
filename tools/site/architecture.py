"""Draws docs/images/architecture.svg: the detector's stages, what flows between them, and what runs where.

    python tools/site/architecture.py

Nothing in it is typed by hand but the sentences: shapes come from a forward pass of R-50-FPN on torch's meta
device, which computes no values, parameter counts from the modules, operators from the source of each stage.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import frcnn
from frcnn.backbone import ResNet
from frcnn.detector import FasterRCNN
from frcnn.fpn import FPN
from frcnn.roi_head import RoIHead
from frcnn.rpn import RPNHead

PATH = Path(__file__).resolve().parents[2] / "docs" / "images" / "architecture.svg"
RECIPE, HEIGHT, WIDTH = "faster_rcnn_r50_fpn_1x_coco", 800, 1344
BOX, SIDE, MARGIN, GAP, LINE = 390, 266, 14, 54, 19
"""Widths of the two columns, margins and distances, in the drawing's own pixels."""


@dataclass(frozen=True)
class Stage:
    """A box of the drawing: code is what runs; training is what it does besides while training."""

    title: str
    code: Callable[..., Any]
    text: str
    module: nn.Module | None = None
    training: Callable[..., Any] | None = None
    learns: str = ""


def stages(model: FasterRCNN) -> list[Stage]:
    rpn, roi = model.rpn_head, model.roi_head
    return [
        Stage("backbone", ResNet.forward, "four maps of rising stride", model.backbone),
        Stage("neck", FPN.forward, "every level sees what the coarser ones know", model.neck),
        Stage(
            "rpn_head",
            RPNHead.forward,
            "three anchors at each position: object or not, and where",
            rpn,
            RPNHead.losses,
            "256 sampled anchors of each image",
        ),
        Stage("rpn_head.propose", RPNHead.propose, "the best of each level, decoded, clipped, NMS"),
        Stage(
            "roi_head",
            RoIHead.forward,
            "pools each proposal to 7 x 7 from a map of the neck",
            roi,
            RoIHead.losses,
            "512 sampled proposals of each image",
        ),
        Stage("roi_head.detect", RoIHead.detect, "score threshold, decoding, NMS of each class"),
    ]


def flows(model: FasterRCNN) -> list[str]:
    """What enters the first stage and leaves each, in words and shapes, for one image."""
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, given, made: outputs.__setitem__(name, made)

    for name in ("backbone", "neck", "rpn_head"):
        getattr(model, name).register_forward_hook(keep(name))
    image = torch.empty(1, 3, HEIGHT, WIDTH, device="meta")
    size, scale = torch.empty(1, 2, device="meta"), torch.empty(1, 2, device="meta")
    _, proposals, _ = model.propose(image, size)
    boxes, scores, labels, _ = model.detect_padded(image, size, scale)
    logits, deltas = outputs["rpn_head"]
    classes, refined, _ = model.roi_head(outputs["neck"], proposals)
    return [
        f"image {shape(image)}, normalized, padded to a multiple of {model.data.pad_divisor}",
        maps(outputs["backbone"]),
        maps(outputs["neck"]),
        f"{sum(level.numel() for level in logits):,} logits, {sum(x.numel() for x in deltas):,} deltas",
        f"proposals {shape(proposals)}, best first",
        f"class logits {shape(classes)}, deltas {shape(refined)}",
        f"boxes {shape(boxes)}, scores {shape(scores)}, labels {shape(labels)}",
    ]


def shape(tensor: Tensor) -> str:
    return "[" + ", ".join(map(str, tensor.shape)) + "]"


def maps(levels: Sequence[Tensor]) -> str:
    """Channels and sizes of feature maps."""
    channels = [level.shape[1] for level in levels]
    sizes = ", ".join(f"{level.shape[2]}x{level.shape[3]}" for level in levels)
    same = len(set(channels)) == 1
    return f"{channels[0] if same else ', '.join(map(str, channels))} channels: {sizes}"


def operators(function: Callable[..., Any]) -> list[str]:
    """The operators that a method calls, itself or by its class's inner methods."""
    function = inspect.unwrap(function)
    source = inspect.getsource(function)
    found = re.findall(r"frcnn_ops\.(\w+)", source)
    owner = inspect.getmodule(function).__dict__.get(function.__qualname__.partition(".")[0])
    for name in re.findall(r"self\.(_\w+)\(", source):
        found += operators(getattr(owner, name))
    return list(dict.fromkeys(found))


def draw() -> str:
    """The SVG's text."""
    with torch.device("meta"):
        model = FasterRCNN(frcnn.recipe(RECIPE).model, frcnn.recipe(RECIPE).data).eval()
    between, parts = flows(model), []
    y = MARGIN + LINE
    parts += arrow(y, between[0])
    for stage, flow in zip(stages(model), between[1:], strict=True):
        y += GAP
        height = 90 if operators(stage.code) else 71
        parts += box(MARGIN, y, BOX, height, stage.title, lines_of(stage))
        if stage.training is not None:
            called = operators(stage.training)
            lines = [stage.learns, *wrapped(called, 34)]
            tall = 33 + LINE * len(lines)
            x, top = MARGIN + BOX + 40, y + height / 2 - tall / 2
            parts += box(x, top, SIDE, tall, f"{stage.title}.losses, in training", lines, dashed=True)
            parts.append(f'<path d="M{MARGIN + BOX} {y + height / 2}H{x - 7}" class="flow dashed"/>')
        y += height
        parts += arrow(y, flow)
    y += GAP
    parts.append(f'<text x="{MARGIN + 12}" y="{y + 14}" class="title">Detections</text>')
    width, height = MARGIN * 2 + BOX + 40 + SIDE, y + 26
    return HEAD.format(width=width, height=int(height), recipe=RECIPE) + "\n".join(parts) + "\n</svg>\n"


def lines_of(stage: Stage) -> list[str]:
    where = f"{inspect.getsourcefile(inspect.unwrap(stage.code))}".replace("\\", "/").rpartition("/")[2]
    count = sum(p.numel() for p in stage.module.parameters()) if stage.module is not None else 0
    lines = [f"frcnn/{where}" + (f", {count / 1e6:.1f} million parameters" if count else ""), stage.text]
    called = operators(stage.code)
    return [*lines, "calls " + ", ".join(called)] if called else lines


def wrapped(words: Sequence[str], width: int) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + len(word) + 2 > width:
            yield line + ","
            line = word
        else:
            line = f"{line}, {word}" if line else word
    yield line


def box(
    x: float, y: float, width: float, height: float, title: str, lines: Sequence[str], dashed: bool = False
) -> list[str]:
    kind = "box dashed" if dashed else "box"
    parts = [f'<rect x="{x}" y="{y:g}" width="{width}" height="{height}" rx="6" class="{kind}"/>']
    parts.append(f'<text x="{x + 12}" y="{y + 22:g}" class="title">{escape(title)}</text>')
    for number, line in enumerate(lines):
        parts.append(f'<text x="{x + 12}" y="{y + 41 + LINE * number - 2:g}">{escape(line)}</text>')
    return parts


def arrow(y: float, text: str) -> list[str]:
    x = MARGIN + 26
    return [
        f'<path d="M{x} {y + 6:g}V{y + GAP - 7:g}" class="flow"/>',
        f'<text x="{x + 14}" y="{y + GAP / 2 + 5:g}" class="flowing">{escape(text)}</text>',
    ]


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>The stages of {recipe}</title>
<style>
text {{ font: 13px sans-serif; fill: #263238; }}
.title {{ font-weight: bold; font-size: 14px; }}
.flowing {{ font-style: italic; fill: #00695c; }}
.box {{ fill: #e0f2f1; stroke: #00796b; }}
.box.dashed {{ fill: #fff8e1; stroke: #b28704; stroke-dasharray: 5 3; }}
.flow {{ stroke: #546e7a; stroke-width: 1.6; fill: none; marker-end: url(#head); }}
.flow.dashed {{ stroke-dasharray: 5 3; }}
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#546e7a"/></marker></defs>
<rect width="{width}" height="{height}" fill="white"/>
"""

if __name__ == "__main__":
    PATH.write_text(draw())
    print(PATH)
