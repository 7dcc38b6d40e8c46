"""A detector that needs no network."""

import torch

from frcnn.config import DataConfig
from frcnn.inference.stream import Predictor


class Model(Predictor):
    """Finds a box, a quarter of the image, and a faint one; calls `before` with each image's number."""

    data = DataConfig(size=(1333, 800))
    class_names = ("a", "b")
    device = torch.device("cpu")

    def __init__(self, weights="weights", before=lambda number: None):
        self.weights, self.before, self.seen = weights, before, 0

    def fingerprint(self):
        return self.weights

    def optimize(self, precision):
        return self

    def _run(self, images, sizes, scales, details):
        self.before(self.seen)
        self.seen += 1
        width, height = (sizes.flip(1) / scales)[0].round().tolist()
        boxes = torch.tensor([[[0.0, 0.0, width / 2, height / 2], [1.0, 1.0, 2.0, 2.0]]])
        return boxes, torch.tensor([[0.9, 0.1]]), torch.tensor([[1, 0]]), torch.tensor([2])


class Stopped(Exception):
    pass


def stop_at(number):
    """`before` for a Model that stops at this image."""

    def before(seen):
        if seen == number:
            raise Stopped

    return before
