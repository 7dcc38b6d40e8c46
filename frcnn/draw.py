"""Boxes with captions drawn on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX
GOLDEN_RATIO = 0.618034


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[int], captions: Sequence[str]
) -> np.ndarray:
    """A copy of an HWC uint8 BGR image with boxes [N, 4] (x1, y1, x2, y2 in pixels) and their captions.

    The first box is drawn last and stays on top: give the best first. Lines and letters grow with the
    image.
    """
    drawn = image.copy()
    height, width = drawn.shape[:2]
    thickness = max(1, round(min(height, width) / 320))
    font_scale = min(max(min(height, width) / 1000, 0.35), 2.0)
    entries = list(zip(np.asarray(boxes).reshape(-1, 4), labels, captions, strict=True))
    for box, label, caption in reversed(entries):
        if not np.isfinite(box).all():
            continue
        x1, y1, x2, y2 = (int(v) for v in np.clip(np.round(box), -32768, 32767))
        color = class_color(label)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), color, thickness)
        if caption:
            _caption(drawn, caption, x1, y1, y2, color, font_scale, thickness)
    return drawn


def encoded(image: np.ndarray, name: str | Path, parameters: Sequence[int] = ()) -> bytes:
    """A file's content, in the format that its name ends in; parameters: cv2's. Raises OSError."""
    try:
        done, content = cv2.imencode(Path(name).suffix, image, parameters)
    except cv2.error as error:
        raise OSError(f"{name}: the annotated image cannot be encoded ({error})") from None
    if not done:
        raise OSError(f"{name}: the annotated image cannot be encoded")
    return content.tobytes()


def class_color(label: int) -> tuple[int, int, int]:
    """A vivid BGR color; labels near each other get hues far apart."""
    hue = (0.58 + label * GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if label % 2 == 0 else 0.6, 0.95)
    return round(255 * blue), round(255 * green), round(255 * red)


def _caption(
    image: np.ndarray,
    text: str,
    x: int,
    top: int,
    bottom: int,
    color: tuple[int, int, int],
    scale: float,
    thickness: int,
) -> None:
    """Text on a filled bar above the box; inside it or below it where the image ends."""
    height, width = image.shape[:2]
    weight = max(1, round(scale * 1.6))
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, weight)
    bar_height = text_height + baseline + 2
    x = min(max(x - thickness // 2, 0), max(width - text_width - 4, 0))
    y = top - bar_height
    if y < 0:
        y = top if bottom - top > 3 * bar_height or bottom + bar_height > height else bottom
    y = min(max(y, 0), max(height - bar_height, 0))
    cv2.rectangle(image, (x, y), (x + text_width + 4, y + bar_height), color, cv2.FILLED)
    brightness = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
    ink = (0, 0, 0) if brightness > 140 else (255, 255, 255)
    cv2.putText(image, text, (x + 2, y + text_height + 1), FONT, scale, ink, weight, cv2.LINE_AA)
