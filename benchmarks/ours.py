"""Our detector as a subject of the benchmark; benchmarks/run.py calls it through benchmarks/worker.py."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import frcnn
from benchmarks import weights as benchmark_weights
from benchmarks.measure import (
    copy_bandwidth,
    matrix_rate,
    peak_bytes,
    reset_peak,
    resident_bytes,
    timed,
)
from benchmarks.stages import StageClock
from benchmarks.work import floor, parameter_count, stage_work
from benchmarks.worker import serve
from frcnn.config import Recipe
from frcnn.inference.fast_detector import compare_detections
from frcnn.inference.hardware import DTYPES, float32_arithmetic
from frcnn.preprocess import fit_size, normalize, pad, padded, resize
from frcnn.structures import Batch, Detections


class Ours:
    """One recipe, plain for training and as the reference, optimized for detection."""

    def load(
        self,
        recipe: str | Recipe,
        weights: str | None,
        size: Sequence[int],
        device: str,
        precision: str,
        mode: str,
        threads: int,
    ) -> dict[str, int]:
        """Build the plain model. size: (height, width) of the images; weights: None generates some."""
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.recipe = frcnn.recipe(recipe) if isinstance(recipe, str) else recipe
        self.size = tuple(size)
        self.device = torch.device(device)
        self.precision, self.mode, self.dtype = precision, mode, DTYPES[precision]
        # the libraries are loaded and no model yet
        self.memory_before = resident_bytes()
        self.model = frcnn.build(self.recipe, weights=weights, device=device)
        if weights is None:
            benchmark_weights.generate(self.model)
        return {"parameters": parameter_count(self.model), "classes": self.model.config.num_classes}

    def calibrate(self) -> None:
        """Make generated weights yield realistic numbers of detections on the images."""
        benchmark_weights.calibrate(self.model, self.batch)

    def save_weights(self, file: str) -> None:
        torch.save(self.model.state_dict(), file)

    @torch.inference_mode()
    def save_detections(self, file: str) -> None:
        """Save the plain float32 model's detections, as tensors, for `drift`."""
        with float32_arithmetic("float32", self.device):
            found = self.model.detect(self.batch, self.scales)
        torch.save([(image.boxes, image.scores, image.labels) for image in found], file)

    def export(self, format: str, file: str, batch: int) -> None:
        """Write the plain model for another runtime, for images of this size; nothing is certified."""
        from frcnn.export.export import described
        from frcnn.export.formats import write
        from frcnn.export.program import exported_program

        data = self.recipe.data
        size = padded(fit_size(*self.size, self._fit()), data.pad_divisor)
        info = described(self.model.eval(), format, size, batch)
        write(exported_program(self.model, info), Path(file), info)

    def optimize(self) -> None:
        """Make the fast detector, which detects from here on, and free the plain one."""
        self.fast = self.model.optimize(precision=self.precision, mode=self.mode)
        del self.model
        gc.collect()

    def take_images(self, file: str) -> None:
        """Take uint8 BGR images [B, H, W, 3] from an .npy file."""
        self.uint8 = list(np.load(file))
        self.batch, self.scales = self._preprocessed()

    @torch.inference_mode()
    def detect(self) -> float:
        """Seconds from network input to detections in pixels of the image."""
        return timed(self._detect, self.device)

    @torch.inference_mode()
    def predict(self) -> float:
        """Seconds from uint8 images to detections."""
        size, batch_size = self._fit(), len(self.uint8)
        return timed(lambda: self.fast.predict(self.uint8, size=size, batch_size=batch_size), self.device)

    @torch.inference_mode()
    def counts(self) -> dict[str, float | list[float]]:
        """Means per image: proposals, of them for each level that RoIAlign pools from, and detections."""
        proposals = self._proposals()
        found = self._detect()
        head, levels = self.recipe.model.roi_head, len(self.recipe.model.strides) - 1
        side = (proposals[:, 2:] - proposals[:, :2]).prod(1).sqrt()
        level = (side / head.finest_scale + 1e-6).log2().floor().clamp(0, levels - 1).long()
        images = len(self.uint8)
        return {
            "proposals": len(proposals) / images,
            "proposals_per_level": (torch.bincount(level, minlength=levels) / images).tolist(),
            "detections": sum(map(len, found)) / images,
        }

    def reset_peak(self) -> None:
        reset_peak(self.device)

    def peak_bytes(self) -> int | None:
        return peak_bytes(self.device, self.memory_before)

    @torch.inference_mode()
    def stages(self, repeats: int) -> dict[str, object]:
        """Each stage's median time, operations, bytes and share of its floor on this machine at this moment.

        Only mode "eager" has stages: a compiled call or a graph is one piece.
        """
        clock = StageClock(self.fast._network, self.device)
        runs, rates = [], self.rates()
        for _ in range(repeats + 1):
            preprocess = timed(self._preprocessed, self.device)
            runs.append({"preprocess": preprocess, **clock.split(self._detect)})
        rates = {name: max(rate, rates[name]) for name, rate in self.rates().items()}
        rois, images = self._proposals(), len(self.uint8)
        table = []
        for stage, layers in stage_work(self.recipe, images, *self.size, rois, self.dtype.itemsize).items():
            seconds = statistics.median(run[stage] for run in runs[1:])
            least = floor(layers, rates["matrix"], rates["copy"])
            table.append(
                {
                    "stage": stage,
                    "ms": seconds * 1e3,
                    "gflop": sum(layer.operations for layer in layers) / 1e9,
                    "mbyte": sum(layer.bytes for layer in layers) / 1e6,
                    "floor_ms": least * 1e3,
                    "share_of_floor": least / seconds,
                }
            )
        return {"rates": rates, "stages": table}

    def rates(self) -> dict[str, float]:
        """What the machine reaches: operations per second in the run's precision, bytes copied per second."""
        with float32_arithmetic(self.precision, self.device):
            return {"matrix": matrix_rate(self.device, self.dtype), "copy": copy_bandwidth(self.device)}

    @torch.inference_mode()
    def drift(self, file: str) -> dict[str, object]:
        """How the fast detector's detections differ from those that `save_detections` kept."""
        plain = [Detections(*image) for image in torch.load(file, weights_only=True)]
        return compare_detections(plain, self._detect())._asdict()

    def box_ap(self, folder: str) -> float:
        """Box AP (percent) of the fast detector on COCO val2017."""
        annotations = Path(folder) / "annotations" / "instances_val2017.json"
        found = frcnn.evaluate(self.fast, annotations, Path(folder) / "val2017")
        return 100 * found.metrics["bbox_mAP"]

    def start_training(self, boxes: list, labels: list) -> None:
        """Get ready for steps on the images, as frcnn.train takes them."""
        self.annotated = Batch(
            self.batch.images,
            self.batch.sizes,
            tuple(torch.tensor(image, dtype=torch.float32, device=self.device) for image in boxes),
            tuple(torch.tensor(image, device=self.device) for image in labels),
        )
        self.model.to(memory_format=torch.channels_last).train()
        schedule = self.recipe.schedule
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            lr=1e-6,  # the weights hardly move: every step costs the same
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
        )

    def train_step(self) -> float:
        """Seconds of forward, backward and update."""
        return timed(self._train_step, self.device)

    def _train_step(self) -> None:
        reduced = self.dtype != torch.float32
        autocast = torch.autocast(
            self.device.type, self.dtype if reduced else torch.bfloat16, enabled=reduced
        )
        with float32_arithmetic(self.precision, self.device):
            with autocast:
                loss = sum(self.model(self.annotated).values())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    def _detect(self) -> list[Detections]:
        return self.fast.detect(self.batch, self.scales)

    def _preprocessed(self) -> tuple[Batch, list[tuple[float, float]]]:
        data = self.recipe.data
        resized = [resize(image, self._fit()) for image in self.uint8]
        images = pad([normalize(image, data) for image, _ in resized], data.pad_divisor)
        batch = Batch(images, tuple(image.shape[:2] for image, _ in resized))
        return batch.to(self.device), [scale for _, scale in resized]

    def _fit(self) -> tuple[int, int]:
        return max(self.size), min(self.size)

    def _proposals(self) -> Tensor:
        """Proposals [K, 4] of all images of the batch."""
        sizes = torch.tensor(self.batch.sizes, dtype=torch.float32, device=self.device)
        _, boxes, present = self.fast._network.propose(self.batch.images, sizes)
        return boxes[present]


if __name__ == "__main__":
    serve(Ours())
