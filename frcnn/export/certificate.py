"""Whether an exported file gives the numbers of the model it was made from, on real images.

Each image is prepared once, for the file's input, and goes through the model, alone, and through the file, in
whole batches (of four where it takes any number): what a batch lacks are mirrored images, which count like
all others. Matched are detections of one class that overlap (IoU 0.5); the drifts are those of matched pairs.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from frcnn.checked import check_whole
from frcnn.detector import FasterRCNN
from frcnn.export.info import ExportError, ExportInfo
from frcnn.files import digest_of
from frcnn.inference.fast_detector import Agreement, compare_detections
from frcnn.inference.sources import find_images
from frcnn.inference.stream import Predictor
from frcnn.preprocess import Prepared, stack_pixels
from frcnn.runtime import ExportedDetector
from frcnn.structures import Detections


class Limits(NamedTuple):
    """What a file of some precision has to keep."""

    matched: float
    """Least part of the detections that has a partner."""
    mean_score_drift: float
    mean_box_drift: float
    """In pixels of the original images."""


LIMITS: Mapping[str, Limits] = {
    "float32": Limits(0.99, 1e-3, 0.1),
    "float16": Limits(0.97, 5e-3, 0.5),
    "bfloat16": Limits(0.90, 2e-2, 2.0),
    "int8": Limits(0.75, 5e-2, 4.0),
}

ANY_BATCH = 4
"""Images in a batch of a file that takes any number."""

SCORE = 0.05
"""Detections from this score on are compared."""


@dataclass(frozen=True)
class Certificate:
    """What was compared, and how it came out.

    file, sha256: the exported file (OpenVINO: with its .bin).
    source: the model that it was made from, and the weights that were loaded into it, as the command line
    names them; empty where unknown.
    ran_with: the runtime that ran the file, and the machine. images: what was compared, beside the mirrored
    ones. detections: of the model and of the file.
    as_predict: what `matched` is between the file's `predict` and the model's, which prepare images each in
    their own way: a file of one size pads them to that size. No limit is set for it.
    stages: where the file fails, the largest difference of each stage's output from the model's, relative to
    the output's largest magnitude.
    """

    file: str
    sha256: str
    info: ExportInfo
    source: tuple[str, str]
    ran_with: str
    images: tuple[str, ...]
    detections: tuple[int, int]
    matched: float
    max_score_drift: float
    mean_score_drift: float
    max_box_drift: float
    mean_box_drift: float
    as_predict: float
    stages: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether there is a detection, and each figure is within the precision's limit (NaN is not)."""
        limits = LIMITS[self.info.precision]
        return (
            min(self.detections) > 0
            and self.matched >= limits.matched
            and self.mean_score_drift <= limits.mean_score_drift
            and self.mean_box_drift <= limits.mean_box_drift
        )

    def __str__(self) -> str:
        limits = LIMITS[self.info.precision]
        ours, theirs = self.detections
        lines = [
            f"file           {self.file}",
            f"sha256         {self.sha256}",
            f"what           {self.info}",
            f"made with      {', '.join(f'{name} {v}' for name, v in self.info.versions.items())}",
            f"ran with       {self.ran_with}",
            f"images         {len(self.images)}, {ours} detections of the model, {theirs} of the file",
            f"matched        {self.matched:.2%} (at least {limits.matched:.0%})",
            f"score drift    mean {self.mean_score_drift:.2g} (at most {limits.mean_score_drift:g}), "
            f"largest {self.max_score_drift:.2g}",
            f"box drift      mean {self.mean_box_drift:.2g} px (at most {limits.mean_box_drift:g}), "
            f"largest {self.max_box_drift:.2g} px",
        ]
        if not self.info.dynamic:
            lines.append(f"as predict     {self.as_predict:.2%} (each pads images its own way; no limit)")
        if self.stages:
            worst = ", ".join(f"{name} {error:.1e}" for name, error in self.stages.items())
            lines.append(f"stages         {worst}")
        return "\n".join([*lines, "certificate    " + ("PASSED" if self.passed else "FAILED")])

    def to_json(self) -> str:
        fields = asdict(self)
        fields["info"] = json.loads(self.info.to_json())
        return json.dumps({"passed": self.passed, **fields}, indent=1)


def beside(path: Path) -> Path:
    """Where an exported file's certificate is."""
    return path.with_name(f"{path.name}.certificate.json")


class AtExport(NamedTuple):
    """What a certificate says of how it came about; empty where that is unknown."""

    source: tuple[str, str] = ("", "")
    images: tuple[Path, ...] = ()
    sha256: str = ""


def at_export(path: Path) -> AtExport:
    """Of the certificate beside an exported file."""
    try:
        fields = json.loads(beside(path).read_text())
        model, weights = map(str, fields["source"])
        images = fields["images"]
        if not (isinstance(images, list) and all(isinstance(image, str) for image in images)):
            return AtExport()
        return AtExport((model, weights), tuple(map(Path, images)), str(fields["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return AtExport()


def real_images(paths: str | Path | Sequence[str | Path], most: int, channels: int | None) -> list[Path]:
    """The first images of files and folders. Raises FileNotFoundError where there is none."""
    check_whole("most_images", most, 1)
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise ExportError("images: an export is checked on real images, so name a folder of some")
    return [path for path, _ in find_images(paths, channels=channels).images if isinstance(path, Path)][:most]


def prepared(detector: ExportedDetector, images: Sequence[Path]) -> list[Prepared]:
    """The images as the file takes them."""
    return [detector._shaped(detector.prepare(path)) for path in images]


def inputs_of(*images: Prepared) -> tuple[Tensor, Tensor, Tensor]:
    """Images of one shape as the graph's inputs."""
    pixels = [torch.from_numpy(image.pixels) for image in images]
    return (
        stack_pixels(pixels, len(images), images[0].padded_size),
        torch.tensor([image.size for image in images], dtype=torch.float32),
        torch.tensor([image.scale for image in images]),
    )


def certify(
    detector: ExportedDetector,
    model: FasterRCNN,
    images: Sequence[Path],
    source: tuple[str, str] = ("", ""),
    final: Path | None = None,
) -> Certificate:
    """Compare an exported file with its model on images; stages are not filled in.

    source: where the model is from. final: the name that the file is to have. Both for the certificate.

    Raises ExportError where the model is not the one that the file was made from.
    """
    if model.fingerprint() != detector.info.weights:
        raise ExportError(
            f"{detector.path} was made from another model (its weights are {detector.info.weights}, these "
            f"{model.fingerprint()}): name the one that it was made from"
        )
    ours, theirs = [], []
    for batch in batches_of(detector, images):
        theirs += found_in(detector._run(*inputs_of(*batch), details=False))
        for image in batch:
            ours += found_in(model._run(*inputs_of(image), details=False))
    agreement: Agreement = compare_detections(ours, theirs)
    alike = agreement
    if not detector.info.dynamic:
        alike = compare_detections(predicted(model, images), predicted(detector, images))
    return Certificate(
        file=str(final or detector.path),
        sha256=sha256(detector.path),
        info=detector.info,
        source=source,
        ran_with=f"{detector.runtime}, {machine()}",
        images=tuple(str(path.absolute()) for path in images),
        detections=agreement.detections,
        matched=agreement.matched,
        max_score_drift=agreement.max_score_drift,
        mean_score_drift=agreement.mean_score_drift,
        max_box_drift=agreement.max_box_drift,
        mean_box_drift=agreement.mean_box_drift,
        as_predict=alike.matched,
        stages={},
    )


def batches_of(detector: ExportedDetector, images: Sequence[Path]) -> list[list[Prepared]]:
    """The images as the file takes them, in full batches of one shape; of any number also the first alone."""
    count = detector.batch or ANY_BATCH
    by_shape: dict[tuple[int, int], list[Prepared]] = {}
    for image in prepared(detector, images):
        by_shape.setdefault(image.padded_size, []).append(image)
    batches = []
    for group in by_shape.values():
        mirrored = cycle([image._replace(pixels=image.pixels[:, ::-1].copy()) for image in group])
        filled = [*group, *islice(mirrored, -len(group) % count)]
        batches += [filled[start : start + count] for start in range(0, len(filled), count)]
    return batches if detector.batch else [batches[0][:1], *batches]


def machine() -> str:
    """What computes here."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def predicted(detector: Predictor, images: Sequence[Path]) -> list[Detections]:
    """What it finds by itself, of SCORE and more."""
    return [found.above(SCORE) for found in detector.stream(list(images))]


def found_in(outputs: Sequence[Tensor]) -> list[Detections]:
    """Each image's detections of SCORE and more."""
    return [
        Detections(boxes[:count], scores[:count], labels[:count]).above(SCORE)
        for boxes, scores, labels, count in zip(*outputs, strict=True)
    ]


def sha256(path: Path) -> str:
    """Of an exported file, followed by OpenVINO's .bin."""
    return digest_of(*parts_of(path))


def parts_of(path: Path) -> Iterator[Path]:
    """The files that an exported detector consists of."""
    yield path
    if path.suffix == ".xml":
        yield path.with_suffix(".bin")
