"""What an exported file says of itself, as JSON inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from frcnn.checked import OptionError, check_whole, is_name, unknown
from frcnn.checkpoint.plain import from_plain, to_plain
from frcnn.config import DataConfig, ModelConfig, Recipe

Format = Literal["torch", "aoti", "onnx", "openvino", "tensorrt"]
ExportPrecision = Literal["float32", "float16", "bfloat16", "int8"]

SUFFIXES: dict[Format, str] = {
    "torch": ".pt2",
    "aoti": ".aoti.pt2",
    "onnx": ".onnx",
    "openvino": ".xml",
    "tensorrt": ".trt.onnx",
}
"""What the names of a format's files end in. OpenVINO's weights are in a second file, .bin."""

PRECISIONS: dict[Format, tuple[ExportPrecision, ...]] = {
    "torch": ("float32", "bfloat16", "float16"),
    "aoti": ("float32", "bfloat16", "float16"),
    "onnx": ("float32", "float16"),
    "openvino": ("float32", "bfloat16", "float16", "int8"),
    "tensorrt": ("float32", "float16"),
}

INPUTS = ("images", "sizes", "scales")
OUTPUTS = ("boxes", "scores", "labels", "counts")
"""What the graph takes and returns; see `frcnn.export.program`."""

KEY = "frcnn"
"""Under which a format's own metadata have the JSON."""

MOST_BATCH, LEAST_SIDE, MOST_SIDE = 64, 128, 4096
"""Images, and pixels of a side, of a file for many shapes."""


def is_exported(path: str | Path) -> bool:
    """Whether a file's name is that of an exported detector."""
    return Path(path).name.endswith(tuple(SUFFIXES.values()))


class ExportError(ValueError):
    """An exported file that cannot be written, read, or trusted; the message says what to do."""


def check_options(
    format: str, precision: str, size: tuple[int, int] | None, batch: int, dynamic: bool, divisor: int = 32
) -> None:
    """Raises OptionError for what a format lacks. divisor: the model's pad_divisor."""
    if format not in SUFFIXES:
        raise unknown("format", format, SUFFIXES)
    known = PRECISIONS[format]
    if precision not in known:
        raise OptionError(f"precision={precision}: format={format} is written in {' or '.join(known)}")
    if dynamic and precision == "int8":
        raise OptionError("dynamic=True: int8 is calibrated for one size; leave it out")
    if dynamic and batch != 1:
        raise OptionError(f"batch={batch}: a dynamic file takes 1 to {MOST_BATCH} images; leave it out")
    least = LEAST_SIDE if dynamic else divisor
    if size is not None and not (
        len(size) == 2
        and all(type(side) is int and least <= side <= MOST_SIDE and side % divisor == 0 for side in size)
    ):
        raise OptionError(
            f"size={size}: height and width are multiples of {divisor} from {least} to {MOST_SIDE}"
        )
    check_whole("batch", batch, 1, MOST_BATCH)


@dataclass(frozen=True)
class ExportInfo:
    """What was exported, and how.

    size: (height, width) of the input, in pixels; of a dynamic file, of the example it was traced with.
    dynamic: the file takes 1 to MOST_BATCH images of any size from LEAST_SIDE to MOST_SIDE, in multiples of
    the model's pad_divisor; otherwise exactly `batch` images of exactly that size.
    weights: the source model's `fingerprint()`.
    versions: of whatever wrote the file, by name.
    bin_sha256: of OpenVINO's second file, which is nothing without the first.
    """

    format: Format
    precision: ExportPrecision
    size: tuple[int, int]
    batch: int
    dynamic: bool
    model: ModelConfig
    data: DataConfig
    class_names: tuple[str, ...]
    weights: str
    versions: Mapping[str, str]
    bin_sha256: str = ""

    def __post_init__(self) -> None:
        check_options(self.format, self.precision, self.size, self.batch, self.dynamic, self.data.pad_divisor)
        if self.class_names and len(self.class_names) != self.model.num_classes:
            raise OptionError(f"{len(self.class_names)} class names for {self.model.num_classes} classes")
        if not all(map(is_name, self.class_names)):
            raise OptionError("class names are text without control characters")

    def to_json(self) -> str:
        fields = asdict(self)
        del fields["model"], fields["data"]
        return json.dumps({**fields, "recipe": to_plain(Recipe("faster_rcnn", self.model, self.data))})

    @staticmethod
    def from_json(text: str, path: str | Path) -> ExportInfo:
        """Raises ExportError, which names the file, for a text that `to_json` has not made."""
        try:
            fields: dict[str, Any] = json.loads(text)
            recipe = from_plain(Recipe, fields.pop("recipe"))
            return ExportInfo(
                format=fields.pop("format"),
                precision=fields.pop("precision"),
                size=tuple(fields.pop("size")),
                batch=fields.pop("batch"),
                dynamic=fields.pop("dynamic") is True,
                model=recipe.model,
                data=recipe.data,
                class_names=tuple(map(str, fields.pop("class_names"))),
                weights=str(fields.pop("weights")),
                versions={str(name): str(version) for name, version in fields.pop("versions").items()},
                bin_sha256=str(fields.pop("bin_sha256")),
            )
        except Exception as error:  # of many kinds, as anything can be in it
            raise ExportError(
                f"{path}: what it says of itself cannot be read ({error}): export it again"
            ) from None

    def __str__(self) -> str:
        shape = "any size" if self.dynamic else f"{self.batch} x {self.size[0]}x{self.size[1]}"
        return f"{self.format}, {self.precision}, {shape}"
