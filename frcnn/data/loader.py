"""From a data set to batches, in worker processes.

What a batch holds does not depend on the workers: the augmentation of a picture is seeded by
(seed, epoch, picture), never by who computes it or when.
"""

from __future__ import annotations

import signal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frcnn.config import DataConfig
from frcnn.data.augment import augment
from frcnn.data.coco import CocoDataset, DatasetError
from frcnn.data.sampler import SampleKey, TrainingBatches
from frcnn.preprocess import normalise, pad, read_image, resize
from frcnn.structures import Batch


class TrainingImages(Dataset):
    """Augmented pictures with their boxes, by SampleKey."""

    def __init__(self, dataset: CocoDataset, data: DataConfig, seed: int):
        self.dataset = dataset
        self.data = data
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor, Tensor, int]:
        rng = np.random.default_rng((self.seed, key.epoch, key.index))
        image = _read(self.dataset, key.index)
        boxes, labels = self.dataset.boxes_of(key.index)
        return (*augment(image, boxes, labels, self.data, rng), key.index)


class EvaluationImages(Dataset):
    """Pictures as the recipe's test size has them, by index: picture, (x, y) scale, index."""

    def __init__(self, dataset: CocoDataset, data: DataConfig):
        self.dataset = dataset
        self.data = data

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, tuple[float, float], int]:
        resized, scale = resize(_read(self.dataset, index), self.data.size)
        return normalise(resized, self.data), scale, index


def training_loader(
    dataset: CocoDataset, data: DataConfig, batches: TrainingBatches, workers: int, pin_memory: bool = False
) -> DataLoader:
    """Yields (Batch, indices of its pictures in the data set) for every step that `batches` lists."""
    return DataLoader(
        TrainingImages(dataset, data, batches.seed),
        batch_sampler=batches,
        collate_fn=_TrainingCollate(data.pad_divisor),
        **_worker_options(workers, pin_memory),
    )


def evaluation_loader(
    dataset: CocoDataset,
    data: DataConfig,
    indices: list[int],
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
) -> DataLoader:
    """Yields (Batch, (x, y) scales, indices) over the given pictures, in order."""
    return DataLoader(
        EvaluationImages(dataset, data),
        sampler=indices,
        batch_size=batch_size,
        collate_fn=_EvaluationCollate(data.pad_divisor),
        **_worker_options(workers, pin_memory),
    )


class _TrainingCollate:
    def __init__(self, divisor: int):
        self.divisor = divisor

    def __call__(self, samples: list[tuple[Tensor, Tensor, Tensor, int]]) -> tuple[Batch, tuple[int, ...]]:
        images, boxes, labels, indices = zip(*samples, strict=True)
        return Batch(pad(images, self.divisor), _sizes(images), boxes, labels), indices


class _EvaluationCollate:
    def __init__(self, divisor: int):
        self.divisor = divisor

    def __call__(
        self, samples: list[tuple[Tensor, tuple[float, float], int]]
    ) -> tuple[Batch, list[tuple[float, float]], list[int]]:
        images, scales, indices = zip(*samples, strict=True)
        return Batch(pad(images, self.divisor), _sizes(images)), list(scales), list(indices)


def _sizes(images: tuple[Tensor, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((image.shape[1], image.shape[2]) for image in images)


def _read(dataset: CocoDataset, index: int) -> np.ndarray:
    path = dataset.image_path(index)
    image = read_image(path)
    expected = (int(dataset.heights[index]), int(dataset.widths[index]))
    if image.shape[:2] != expected:
        raise DatasetError(
            f"{path} is {image.shape[1]}x{image.shape[0]} pixels (width x height, upright) but "
            f"{dataset.annotation_file} says {expected[1]}x{expected[0]}: "
            "its boxes would not fit; correct the file"
        )
    return image


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the trainer decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
