"""From a data set to batches for training, in worker processes.

What a batch holds depends on neither workers nor processes: the augmentation of an image is seeded by
(seed, epoch, image), never by who computes it or when, and so is the sampling of a batch's anchors and
proposals, by its first image; the image that takes the place of a bad one is the next good one of the data
set.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from frcnn.as_pixels import expect_channels
from frcnn.config import DataConfig
from frcnn.data.augment import Annotated, augment
from frcnn.data.coco import CocoDataset, DatasetError
from frcnn.data.sampler import SampleKey, TrainingBatches
from frcnn.preprocess import fit_size, pad_pixels
from frcnn.read_image import JPEG_SUFFIXES, ImageError, read_header
from frcnn.structures import Batch

SIGNALS = {signal.SIGINT, signal.SIGTERM}


@dataclass(frozen=True)
class BadImage:
    """An image of the data set that cannot be used; the reason names its file."""

    index: int
    reason: str


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """image [H, W, 3] uint8 BGR, boxes [G, 4], labels [G], the index in the data set, the bad images whose
    place it takes, and a random number of this image and epoch."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    index: int
    bad: tuple[BadImage, ...]
    seed: int


@dataclass(frozen=True)
class _Failure:
    """An error in a worker, as text: an exception would arrive with the worker's traceback in its message."""

    text: str


def allowed_bad_images(images: int, share: float) -> int:
    """How many of so many training images may be bad: `share` of them, at least one unless it is 0, and not
    all."""
    return min(images - 1, max(1, int(images * share))) if share else 0


def read_annotated(
    dataset: CocoDataset, index: int, channels: int, at_least: tuple[int, int] | None = None
) -> np.ndarray:
    """An image of the data set, HWC uint8 (BGR); of a JPEG file as much as `read_image` says. Raises
    ImageError, also for another size than the annotation file says or other channels, and OSError."""
    path = dataset.image_path(index)
    image = expect_channels(dataset.read(index, at_least), channels, path)
    height, width = image.shape[:2]
    if at_least is not None:
        width, height, *_ = read_header(path)
    expected = (int(dataset.heights[index]), int(dataset.widths[index]))
    if (height, width) != expected:
        raise ImageError(
            f"{path} is {width}x{height} pixels (width x height, upright) but {dataset.annotation_file} says "
            f"{expected[1]}x{expected[0]}: its boxes would not fit; correct the file"
        )
    return image


def read_to_augment(dataset: CocoDataset, index: int, data: DataConfig, with_crowd: bool) -> Annotated:
    """An image with its boxes and labels, reduced by `DataConfig.reduced_decoding` to no less than all that
    augmentation can make of it. Raises as `read_annotated` does."""
    boxes, labels = dataset.boxes_of(index, with_crowd)
    if not (data.reduced_decoding and dataset.image_path(index).suffix.lower() in JPEG_SUFFIXES):
        return read_annotated(dataset, index, data.channels), boxes, labels
    whole = int(dataset.heights[index]), int(dataset.widths[index])
    height, width = fit_size(*whole, (data.size[0], max(data.train_short_sides)))
    factor = max(1.0, data.scale_jitter[1]) * (2 if data.crop else 1)  # a crop has half of each side or more
    enough = math.ceil(factor * height), math.ceil(factor * width)
    pixels = read_annotated(dataset, index, data.channels, enough)
    scale = pixels.shape[1] / whole[1], pixels.shape[0] / whole[0]
    return pixels, boxes * np.array(scale * 2, np.float32), labels


def bad_image(dataset: CocoDataset, index: int, error: Exception) -> BadImage:
    path, reason = str(dataset.image_path(index)), str(error)
    return BadImage(index, reason if path in reason else f"{path}: {reason}")


class TrainingImages(Dataset):
    """Augmented images with their boxes, by SampleKey.

    The next image of the data set takes the place of one that cannot be used. After more than `allowed`
    unusable ones in a row, where training stops anyway, a blank image without boxes does. Any other error in
    a worker comes back as a `_Failure`.
    """

    def __init__(
        self, dataset: CocoDataset, data: DataConfig, seed: int, allowed: int, with_crowd: bool = False
    ):
        self.dataset = dataset
        self.with_crowd = with_crowd
        self.data = data
        self.seed = seed
        self.allowed = allowed

    def __getitem__(self, key: SampleKey) -> TrainingSample | _Failure:
        try:
            return self._sample(key)
        except Exception as error:
            if get_worker_info() is None:
                raise
            path = self.dataset.image_path(key.index)
            return _Failure(f"{path}: {type(error).__name__}: {error} (workers=0 shows where)")

    def _sample(self, key: SampleKey) -> TrainingSample:
        bad = []
        seed = int(np.random.default_rng((self.seed, key.epoch, key.index, 1)).integers(2**63))
        for step in range(min(self.allowed + 1, len(self.dataset))):
            index = (key.index + step) % len(self.dataset)
            rng = np.random.default_rng((self.seed, key.epoch, key.index))
            try:
                sample = read_to_augment(self.dataset, index, self.data, self.with_crowd)
                image = augment(*sample, self.data, rng)
            except (ImageError, OSError) as error:
                bad.append(bad_image(self.dataset, index, error))
            else:
                return TrainingSample(*image, index, tuple(bad), seed)
        side = min(self.data.size)
        blank = (
            torch.zeros(side, side, self.data.channels, dtype=torch.uint8),
            torch.zeros(0, 4),
            torch.zeros(0, dtype=torch.int64),
        )
        return TrainingSample(*blank, key.index, tuple(bad), seed)


def training_loader(
    dataset: CocoDataset,
    data: DataConfig,
    batches: TrainingBatches,
    workers: int,
    pin_memory: bool = False,
    max_bad_images: float = 0.01,
    with_crowd: bool = False,
) -> DataLoader:
    """A loader for `running`. For every step in `batches` it gives the Batch, the indices of its images in
    the data set, and the bad images that others took the place of. with_crowd: see `boxes_of`."""
    allowed = allowed_bad_images(len(dataset), max_bad_images)
    return DataLoader(
        TrainingImages(dataset, data, batches.seed, allowed, with_crowd),
        batch_sampler=batches,
        collate_fn=_TrainingCollate(data.pad_divisor),
        **_worker_options(workers, pin_memory),
    )


@contextmanager
def running(loader: DataLoader) -> Iterator[Iterator]:
    """The batches of a loader; whatever happens, its workers end with the block.

    Raises DatasetError where an image fails otherwise than by being bad, and ChildProcessError where a worker
    dies; torch raises that in the midst of whatever the main thread is doing, so it covers the whole block.
    """
    before = set(multiprocessing.active_children())
    iterator = None
    try:
        with _signals_held():
            iterator = iter(loader)
        workers = set(multiprocessing.active_children()) - before
        yield map(_checked, iterator)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise ChildProcessError(
            f"{error}: it reads images; if the system ended it for want of memory, take fewer workers"
        ) from None
    finally:
        if iterator is not None and hasattr(
            iterator, "_shutdown_workers"
        ):  # torch's own way out, else taken when memory is reclaimed
            iterator._shutdown_workers()
            for worker in workers:
                if worker.is_alive():  # stuck, and deaf to the SIGTERM that torch and Python end workers with
                    worker.kill()


def _checked(batch: Any) -> Any:
    if isinstance(batch, _Failure):
        raise DatasetError(batch.text)
    return batch


@contextmanager
def _signals_held() -> Iterator[None]:
    """Processes that start meanwhile do not get SIGINT and SIGTERM: `_start_worker` is too late for one that
    is sent to the whole group at that moment."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _TrainingCollate:
    def __init__(self, divisor: int):
        self.divisor = divisor

    def __call__(
        self, samples: list[TrainingSample | _Failure]
    ) -> tuple[Batch, tuple[int, ...], list[BadImage]] | _Failure:
        good: list[TrainingSample] = []
        for sample in samples:
            if isinstance(sample, _Failure):
                return sample
            good.append(sample)
        batch = Batch(
            pad_pixels([sample.image for sample in good], self.divisor),
            tuple((sample.image.shape[0], sample.image.shape[1]) for sample in good),
            tuple(sample.boxes for sample in good),
            tuple(sample.labels for sample in good),
            good[0].seed,
        )
        return batch, tuple(sample.index for sample in good), [bad for sample in good for bad in sample.bad]


def _worker_options(workers: int, pin_memory: bool) -> dict:
    return {
        "num_workers": workers,
        "worker_init_fn": _start_worker,
        "pin_memory": pin_memory,
        # DataLoader draws a seed for its workers; from its own generator, so that the random numbers of
        # training do not depend on how often a loader was started.
        "generator": torch.Generator(),
    }


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # one worker is one core; OpenCV's own threads would fight over them
    torch.set_num_threads(1)
    # Both reach the whole group; the main process decides. A worker's end would tear it out of its step.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
