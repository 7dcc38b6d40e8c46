"""Detection in several views of an image (tiles, scales, mirrored), whose detections become one list."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

import frcnn_ops
from frcnn.as_pixels import Image, as_pixels
from frcnn.checked import OptionError
from frcnn.config import MAX_INPUT, ViewConfig
from frcnn.inference.stream import Extra, Item, Predictor, prepared_ahead
from frcnn.preprocess import Prepared, fit_size, prepare
from frcnn.read_image import ImageError
from frcnn.structures import Detections, upload

MOST_VIEWS = 4096
"""Of an image."""


class View(NamedTuple):
    """What of an image the network sees, and how."""

    region: tuple[int, int, int, int]
    """x1, y1, x2, y2 in its pixels."""
    scale: float
    mirrored: bool


class ViewsDetector(Predictor):
    """A detector in the views that `views` asks for.

    Views go through the network as images of their own do. A tile's detections at a border within the image
    are left out: another tile or the whole image has the object whole. On the device, NMS per class over all
    views leaves as many as the model's max_detections.

    Raises OptionError for a scale that makes the input too large, and for a model that has its own way
    through images, as exported ones of a fixed shape.
    """

    def __init__(self, model: Predictor, views: ViewConfig):
        if model.shape is not None or type(model).results is not Predictor.results:
            raise OptionError(
                "views are for models that take images of any shape, unlike this exported file: export it "
                "with dynamic=True, or name the checkpoint"
            )
        for scale in views.scales:
            if model.data.size[0] * model.data.size[1] * scale**2 > MAX_INPUT:
                raise OptionError(f"views.scales={scale}: the network's input has at most {MAX_INPUT} pixels")
        self.model, self.views = model, views
        self.config, self.data, self.class_names = model.config, model.data, model.class_names

    @property
    def device(self) -> torch.device:
        return self.model.device

    def fingerprint(self) -> str:
        return f"{self.model.fingerprint()} {self.views}"

    def check_size(self, size: tuple[int, int] | None) -> None:
        if size is not None:
            raise OptionError("size= and views exclude each other: views have scales")

    def prepare(self, image: Image, size: tuple[int, int] | None = None, rgb: bool = False) -> Prepared:
        """The image as it is: the views are made of it. Raises ImageError where one of them would vanish,
        or where they would be too many."""
        pixels = as_pixels(image, self.data.channels, rgb)
        height, width = pixels.shape[:2]
        for scale in self.views.scales:
            fit_size(height, width, self._size(scale))
        tile = self.views.tile or max(height, width)
        step = max(1, int(tile * (1 - self.views.overlap)))
        each = len(self.views.scales) * (1 + self.views.flip)
        if (1 + -(-width // step) * -(-height // step)) * each > MOST_VIEWS:
            raise ImageError(
                f"an image of {width}x{height} pixels has more than {MOST_VIEWS} views: choose a larger "
                f"views.tile than {tile}, or less overlap"
            )
        return Prepared(pixels, pixels.shape[:2], pixels.shape[:2], (1.0, 1.0))

    def results(
        self,
        items: Iterable[Item],
        read: Callable[[Item], tuple[Prepared | None, Extra]],
        batch_size: int = 1,
        threads: int | None = None,
        details: bool = False,
    ) -> Generator[tuple[Extra, Detections | None], None, None]:
        """As `Predictor.results`; details are not merged, so they raise OptionError."""
        if details:
            raise OptionError("details=True is for one view of an image")
        threads, batch_size = self.model._settled(threads, batch_size)
        # one thread reads an image, others make its views: no more of them are held than are ahead
        whole = prepared_ahead(items, read, threads, ahead=threads)

        def each() -> Generator[tuple[Prepared | None, View | None, bool, Extra], None, None]:
            for image, extra in whole:
                views = [None] if image is None else self._views_of(image)
                for view in views:
                    yield image, view, view is views[-1], extra

        def seen(
            one: tuple[Prepared | None, View | None, bool, Extra],
        ) -> tuple[Prepared | None, tuple[Extra, View | None, bool]]:
            image, view, last, extra = one
            if image is None or view is None:
                return None, (extra, None, last)
            return self._seen(image.pixels, view), (extra, view, last)

        of_views = each()
        stream = self.model.results(of_views, seen, batch_size, threads)
        found: list[tuple[View, Detections]] = []
        with closing(whole), closing(of_views), closing(stream):
            for (extra, view, last), detections in stream:
                if view is not None and detections is not None:
                    found.append((view, detections))
                if last:
                    yield extra, self._merged(found) if found else None
                    found = []

    def _one(self, image: Prepared, details: bool) -> Detections:
        with closing(self.results([image], lambda whole: (whole, None), details=details)) as results:
            found = next(results)[1]
        assert found is not None  # there is an image
        return found

    def _size(self, scale: float) -> tuple[int, int]:
        long, short = self.data.size
        return max(1, int(long * scale)), max(1, int(short * scale))

    def _views_of(self, image: Prepared) -> list[View]:
        height, width = image.size
        return [
            View(region, scale, mirrored)
            for region in regions(width, height, self.views)
            for scale in self.views.scales
            for mirrored in (False, True)[: 1 + self.views.flip]
        ]

    def _seen(self, pixels: np.ndarray, view: View) -> Prepared:
        x1, y1, x2, y2 = view.region
        region = pixels[y1:y2, x1:x2]
        return prepare(
            (region[:, ::-1] if view.mirrored else region).copy(), self.data, self._size(view.scale)
        )

    def _merged(self, found: list[tuple[View, Detections]]) -> Detections:
        boxes, kept = [], []
        image = torch.tensor(found[0][0].region)
        for view, detections in found:
            box, region = detections.boxes.clone(), torch.tensor(view.region)
            sides = region[2:] - region[:2]
            if view.mirrored:
                box[:, [0, 2]] = sides[0] - box[:, [2, 0]]
            at_border = torch.cat([box[:, :2], sides - box[:, 2:]], 1) < 1
            whole = ~(at_border & (region != image)).any(1)
            boxes.append(box[whole] + region[:2].repeat(2))
            kept.append(detections[whole])
        scores = torch.cat([each.scores for each in kept])
        labels = torch.cat([each.labels for each in kept])
        joined = Detections(torch.cat(boxes), scores, labels, self.class_names)
        boxes_on, scores_on, labels_on = (upload(x, self.device) for x in (joined.boxes, scores, labels))
        best = frcnn_ops.batched_nms(boxes_on, scores_on, labels_on, self.views.nms_iou).cpu()
        return joined[best[: self.config.roi_head.max_detections]]


def regions(width: int, height: int, views: ViewConfig) -> list[tuple[int, int, int, int]]:
    """The whole image, and its tiles if it is larger than one: x1, y1, x2, y2 in pixels, row by row."""
    whole = [(0, 0, width, height)]
    if views.tile is None or max(width, height) <= views.tile:
        return whole
    xs, ys = (_starts(length, views.tile, views.overlap) for length in (width, height))
    return whole + [(x, y, min(x + views.tile, width), min(y + views.tile, height)) for y in ys for x in xs]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin: each repeats at least `overlap` of the one before, and the last ends at the end."""
    if length <= tile:
        return [0]
    count = 1 + int(np.ceil((length - tile) / max(1, int(tile * (1 - overlap)))))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]
