"""An exported file as a subject of the benchmark; benchmarks/run.py calls it through benchmarks/worker.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import peak_bytes, reset_peak, resident_bytes, timed
from benchmarks.worker import serve
from frcnn import runtime
from frcnn.export.certificate import inputs_of

CPU = torch.device("cpu")


class Exported:
    """A file that `Ours.export` wrote, run by `frcnn.runtime`."""

    def load(self, file: str, size: Sequence[int], threads: int) -> dict[str, str]:
        """size: (height, width) of the images."""
        torch.set_num_threads(threads)
        self.memory_before = resident_bytes()
        self.detector = runtime.load(file, run_code=True)
        self.size = max(size), min(size)
        return {"name": self.detector.info.format}

    def take_images(self, file: str) -> None:
        """Take uint8 BGR images [B, H, W, 3] from an .npy file."""
        self.uint8 = list(np.load(file))
        self.inputs = inputs_of(*(self.detector.prepare(image, self.size) for image in self.uint8))

    def detect(self) -> float:
        """Seconds from network input to detections in pixels of the image."""
        return timed(lambda: self.detector._run(*self.inputs, details=False), CPU)

    def predict(self) -> float:
        """Seconds from uint8 images to detections."""
        return timed(lambda: self.detector.predict(self.uint8, size=self.size), CPU)

    def counts(self) -> dict[str, float]:
        """Mean detections per image."""
        return {"detections": self.detector._run(*self.inputs, details=False)[3].float().mean().item()}

    def reset_peak(self) -> None:
        reset_peak(CPU)

    def peak_bytes(self) -> int | None:
        return peak_bytes(CPU, self.memory_before)


def path_of(folder: Path, format: str) -> Path:
    """Where `Ours.export` writes a format's file."""
    from frcnn.export.info import SUFFIXES

    return folder / f"exported{SUFFIXES[format]}"


if __name__ == "__main__":
    serve(Exported())
