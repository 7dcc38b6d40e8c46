"""What `frcnn.data.check` found, as a page with the images in question."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from frcnn.as_pixels import visible
from frcnn.data.check import DatasetCheck, Example
from frcnn.data.sheet import shrunk
from frcnn.draw import draw_boxes
from frcnn.page import inline, page
from frcnn.read_image import ImageError, read_image

SHOWN = 8
"""Cases of each finding."""


def check_page(found: DatasetCheck) -> str:
    """HTML, see `frcnn.page`. An image that cannot be read has its caption alone."""
    findings = [
        (finding, [(example, drawn(example)) for example in finding.examples[:SHOWN]])
        for finding in found.findings
    ]
    most = max([1, *found.classes.values()])
    title = f"Check of {found.annotations}"
    return page("check.html", title=title, found=found, findings=findings, most=most)


def drawn(example: Example, labels: Sequence[int] | None = None) -> str:
    """The address of its image with its boxes, in the colors of labels; "" without an image."""
    if not example.image:
        return ""
    with contextlib.suppress(ImageError, OSError):
        pixels, scale = shrunk(visible(read_image(example.image)))
        boxes = np.array(example.boxes).reshape(-1, 4) * scale
        return inline(draw_boxes(pixels, boxes, labels or range(len(boxes)), [""] * len(boxes)))
    return ""
