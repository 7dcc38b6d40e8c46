"""A training step as CUDA graphs: one launch per step instead of hundreds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from frcnn.detector import FasterRCNN
from frcnn.engine.step import Learner, Numbers
from frcnn.inference.cuda_graph import Captured, CudaCapture, Function, GraphCache
from frcnn.inference.shapes import few_shapes, smallest_holding
from frcnn.structures import Batch, upload
from frcnn.targets import GroundTruth


class StepGraphs:
    """`Learner.step` of one process on a GPU, captured whole for each shape of its input.

    Images are padded to one of few shapes, as a fast detector in graph mode can do, and ground truth to a
    power of two of boxes, so that few graphs serve a data set. Beside the border of its image a convolution
    sees the padding's activations where it saw zeros.
    """

    def __init__(self, model: FasterRCNN, learner: Learner):
        self.model, self.learner = model, learner
        self.graphs = GraphCache(self._learn, self._capture)
        self._record = CudaCapture()

    def step(self, batches: Sequence[Batch], lr: float, weight: float = 1.0) -> Numbers:
        """Learn from one batch of uint8 images on the model's device with this rate; the weight of one
        process's only batch is 1."""
        (batch,) = batches
        data, (height, width) = self.model.data, batch.images.shape[1:3]
        shape = smallest_holding((height, width), few_shapes(data.size, data.pad_divisor))
        rows, columns = shape or (height, width)
        images = batch.images
        if (rows, columns) != (height, width):
            images = F.pad(images, (0, 0, 0, columns - width, 0, rows - height))
        gt = self.model.ground_truth(batch)
        rate = upload([lr], images.device, torch.float32)
        try:
            return self.learner.numbers(*self.graphs(images, gt.packed, rate))
        finally:
            for group in self.learner.optimizer.param_groups:
                group["lr"] = lr  # a capture leaves its own tensor there

    def _learn(self, images: Tensor, packed: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        gt = GroundTruth.unpack(packed, len(images), self.model.config.ignore_iof)
        return self.learner.learn([lambda: self.model.losses_of(images, gt)], rate[0])

    def _capture(self, function: Function, inputs: Sequence[Tensor]) -> Captured:
        """The runs before a capture leave no trace: broken training learns nothing, and what else they change
        is put back."""
        state = [self.learner.broken, *self.model.buffers()]
        if self.learner.scale is not None:
            state += [self.learner.scale.value, self.learner.scale.steps]
        before = [tensor.clone() for tensor in state]
        self.learner.broken.fill_(1)
        try:
            return self._record(function, inputs)
        finally:
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
