"""Detection data sets in COCO format: reading, checking, augmenting, batching."""

from frcnn.data.coco import CocoDataset, DatasetError, load_dataset
from frcnn.data.loader import TrainingImages, running, training_loader
from frcnn.data.sampler import TrainingBatches

__all__ = [
    "CocoDataset",
    "DatasetError",
    "TrainingBatches",
    "TrainingImages",
    "load_dataset",
    "running",
    "training_loader",
]
