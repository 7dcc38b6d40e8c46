"""Detection on a cluster with Ray Data, from any source that Ray reads to any sink that it writes:

    import ray, frcnn.ray
    images = ray.data.read_binary_files("s3://bucket/images", include_paths=True)
    actors = ray.data.ActorPoolStrategy(size=8)
    found = images.map_batches(frcnn.ray.Detector, fn_constructor_args=["best.pth"], compute=actors)
    found.write_parquet("s3://bucket/found")

Ray hands out the images, starts an actor for each Detector and restarts what dies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow

from frcnn.as_pixels import as_pixels
from frcnn.commands.model import load_detector
from frcnn.engine.detect import check_options
from frcnn.inference.hardware import Precision
from frcnn.preprocess import Prepared
from frcnn.read_image import ImageError, read_bytes

BOX = pyarrow.struct(
    [
        ("label", pyarrow.int64()),
        ("name", pyarrow.string()),
        ("score", pyarrow.float64()),
        ("box", pyarrow.list_(pyarrow.float64())),
    ]
)
FOUND = {
    "width": pyarrow.int64(),
    "height": pyarrow.int64(),
    "detections": pyarrow.list_(BOX),
    "error": pyarrow.string(),
}
"""The columns of a result, as the entries of `frcnn detect`; error says why an image could not be used."""


class Detector:
    """A class for `map_batches`: an actor's detector. A batch has a column "bytes", of image files, as
    `ray.data.read_binary_files` gives them, or "image", of RGB arrays, as `ray.data.read_images`.

    Files are decoded as by `frcnn detect`: upright, images of every depth. The result has the other columns,
    such as "path", and FOUND. On a CPU it is `frcnn detect`'s to the bit, for as many threads.

    model: a checkpoint, an exported file or a recipe's name, as of `frcnn detect`; weights, device and
    precision too. min_score, size and batch_size: as there; the latter is how many images go through a GPU's
    network together, of those in a batch of Ray's.
    """

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        device: str | None = None,
        precision: Precision = "float32",
        min_score: float = 0.3,
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
    ):
        check_options(min_score, size, batch_size)
        self.detector = load_detector(str(model), weights, device, precision, run_code=False)
        self.detector.check_size(size)
        self.min_score, self.size, self.batch_size = min_score, size, batch_size

    def __call__(self, batch: dict[str, np.ndarray]) -> pyarrow.Table:
        files = "bytes" in batch
        if not files and "image" not in batch:
            raise ValueError(f"a batch has 'bytes' or 'image', not only {', '.join(batch) or 'nothing'}")

        def read(image: Any) -> tuple[Prepared | None, tuple[np.ndarray | None, str | None]]:
            try:
                pixels = (
                    read_bytes(*image) if files else as_pixels(image, self.detector.data.channels, rgb=True)
                )
                return self.detector.prepare(pixels, self.size), (pixels, None)
            except (ImageError, OSError) as error:
                return None, (None, str(error))

        rows = []
        images: Iterable[Any] = batch["bytes" if files else "image"]
        if files:
            images = zip(images, batch.get("path", ["a file"] * len(batch["bytes"])), strict=True)
        for (pixels, error), found in self.detector.results(images, read, self.batch_size):
            listed = None if found is None else found.above(self.min_score).to_json()
            height, width = (None, None) if pixels is None else pixels.shape[:2]
            rows.append({"width": width, "height": height, "detections": listed, "error": error})
        columns = {name: pyarrow.array([row[name] for row in rows], kind) for name, kind in FOUND.items()}
        others = {name: pyarrow.array(batch[name]) for name in batch if name not in ("bytes", "image")}
        return pyarrow.table({**others, **columns})
