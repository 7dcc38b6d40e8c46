"""Detection in several views of an image (tiles, scales, mirrored), whose detections become one list."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

import frcnn_ops
from frcnn.checked import OptionError
from frcnn.config import ViewConfig
from frcnn.inference.stream import Extra, Item, Predictor, prepared_ahead
from frcnn.preprocess import Prepared, fit_size, prepare
from frcnn.read_image import Image, as_bgr
from frcnn.structures import Detections, upload


class Part(NamedTuple):
    """A view, and how its boxes lie in the image."""

    image: Prepared
    corner: tuple[int, int]
    """(x, y) of its first pixel."""
    inner: tuple[float, float, float, float]
    """Where its own borders are borders within the image: x1, y1, x2, y2; infinite at the image's."""
    mirror: int | None
    """The width, where it is mirrored."""


class ViewsDetector(Predictor):
    """A detector in the views that `views` asks for.

    Views go through the network as images of their own do. A tile's detections at a border within the image
    are left out: another tile or the whole image has the object whole. On the device, NMS per class over all
    views leaves as many as the model's max_detections.

    Raises OptionError for a model that has its own way through images, as exported ones of a fixed shape.
    """

    def __init__(self, model: Predictor, views: ViewConfig):
        if model.shape is not None or type(model).results is not Predictor.results:
            raise OptionError(
                "views are for models that take images of any shape: not for this exported file"
            )
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
        """The image as it is: the views are made of it. Raises ImageError where one of them would vanish."""
        pixels = as_bgr(image, rgb)
        for scale in self.views.scales:
            fit_size(pixels.shape[0], pixels.shape[1], self._size(scale))
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

        def seen(item: Item) -> tuple[list[Part], Extra]:
            image, extra = read(item)
            return [] if image is None else list(self._parts(image.pixels)), extra

        ready = prepared_ahead(items, seen, threads, ahead=2 * threads)

        def one_by_one() -> Generator[tuple[Prepared | None, tuple[Extra, Part | None, bool]], None, None]:
            with closing(ready):
                for parts, extra in ready:
                    if not parts:
                        yield None, (extra, None, True)
                    for part in parts:
                        yield self.model._shaped(part.image), (extra, part, part is parts[-1])

        stream = self.model._detected(one_by_one(), batch_size)
        found: list[tuple[Part, Detections]] = []
        with closing(stream):
            for (extra, part, last), detections in stream:
                if part is not None and detections is not None:
                    found.append((part, detections))
                if last:
                    yield extra, self._merged(found) if found else None
                    found = []

    def _size(self, scale: float) -> tuple[int, int]:
        long, short = self.data.size
        return max(1, int(long * scale)), max(1, int(short * scale))

    def _parts(self, pixels: np.ndarray) -> Iterator[Part]:
        height, width = pixels.shape[:2]
        for x1, y1, x2, y2 in regions(width, height, self.views):
            region = pixels[y1:y2, x1:x2]
            inner = (
                0.0 if x1 > 0 else -np.inf,
                0.0 if y1 > 0 else -np.inf,
                x2 - x1 if x2 < width else np.inf,
                y2 - y1 if y2 < height else np.inf,
            )
            for scale in self.views.scales:
                for mirror in (None, x2 - x1)[: 1 + self.views.flip]:
                    view = np.ascontiguousarray(region if mirror is None else region[:, ::-1])
                    yield Part(prepare(view, self.data, self._size(scale)), (x1, y1), inner, mirror)

    def _merged(self, found: list[tuple[Part, Detections]]) -> Detections:
        boxes, kept = [], []
        for part, detections in found:
            box = detections.boxes.clone()
            if part.mirror is not None:
                box[:, [0, 2]] = part.mirror - box[:, [2, 0]]
            inner = torch.tensor(part.inner)
            whole = ((box[:, :2] >= inner[:2] + 1) & (box[:, 2:] <= inner[2:] - 1)).all(1)
            boxes.append(box[whole] + torch.tensor(part.corner * 2))
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
