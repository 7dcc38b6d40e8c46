"""Writes a model to a file for another runtime, and checks such a file again."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from frcnn.detector import FasterRCNN, evaluating
from frcnn.export.certificate import (
    Certificate,
    at_export,
    beside,
    certify,
    found_in,
    inputs_of,
    parts_of,
    prepared,
    real_images,
    sha256,
)
from frcnn.export.formats import check_packages, versions, write
from frcnn.export.info import (
    LEAST_SIDE,
    SUFFIXES,
    ExportError,
    ExportInfo,
    ExportPrecision,
    Format,
    check_options,
)
from frcnn.export.program import exported_program
from frcnn.export.stages import stage_errors
from frcnn.files import check_writable
from frcnn.preprocess import padded
from frcnn.runtime import ExportedDetector, load


def export(
    model: FasterRCNN,
    path: str | Path,
    images: str | Path | Sequence[str | Path],
    format: Format = "onnx",
    size: tuple[int, int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    precision: ExportPrecision = "float32",
    most_images: int = 32,
    source: tuple[str, str] = ("", ""),
) -> Certificate:
    """Write a model to a file for another runtime, and certify it on real images.

    Args:
        path: its name ends as the format's files do: .pt2 (torch), .aoti.pt2, .onnx, .xml (openvino) or
            .trt.onnx (tensorrt). An earlier export there, as its certificate knows it, is replaced, but only
            by a file that passes.
        images: files and folders of images like those to come; `most_images` of them are compared (and, for
            int8, calibrated on). The certificate says what came of it and is written beside the file.
        size: (height, width) of the input, in pixels, multiples of the model's pad_divisor; default: what
            a wide image of the model's size takes.
        batch: images per run of a file of one size.
        dynamic: take 1 to 64 images of any size instead.
        source: the model and the weights as `frcnn export` was given them, for `frcnn verify`.
        precision: "float32"; "float16" and "bfloat16" (convolutions and products); "int8" (OpenVINO).

    Returns the certificate, which has passed.

    Raises ExportError where a package is missing, something else is at the path, the model finds nothing in
    the images, or the file did not pass: then the message holds the certificate, and what was at the path
    before still is. Raises OptionError for options that a format lacks, ImageError for an image that cannot
    be used, and OSError, as on a full disk.
    """
    path = Path(path)
    check_export(path, format, precision, size, batch, dynamic, model.data.pad_divisor)
    chosen = real_images(images, most_images, model.data.channels)
    if model.device.type != "cpu":
        raise ExportError(f"the model is on {model.device}: export it from the CPU (model.cpu())")
    if size is None:
        height, width = padded((min(model.data.size), max(model.data.size)), model.data.pad_divisor)
        size = (max(height, LEAST_SIDE), max(width, LEAST_SIDE)) if dynamic else (height, width)
    info = described(model, format, size, batch, dynamic, precision)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder, evaluating(model):
        written = Path(folder) / path.name
        like = ExportedDetector(lambda *_: (), info, "", written)
        inputs = [inputs_of(image) for image in prepared(like, chosen)]
        if not any(len(found_in(model._run(*one, details=False))[0]) for one in inputs):
            raise ExportError(
                "the model finds nothing in these images, so there is nothing to compare: choose images with "
                "objects that it finds"
            )
        with _naming(path):
            write(exported_program(model, info), written, info, inputs)
        detector = load(written, run_code=True)
        certificate = certify(detector, model, chosen, source, path)
        if not certificate.passed:
            certificate = replace(
                certificate, stages=stage_errors(model, info, inputs[0], Path(folder), inputs)
            )
            raise ExportError(f"{path} was not written, as its numbers are not the model's:\n{certificate}")
        del detector  # which may map the file
        with _naming(path):
            beside(written).write_text(certificate.to_json() + "\n")
            put_in_place([*parts_of(written), beside(written)], path.parent)
    return certificate


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the block are about this file, not about the one in whose place it is written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from None


def check_export(
    path: Path,
    format: Format,
    precision: ExportPrecision,
    size: tuple[int, int] | None,
    batch: int,
    dynamic: bool,
    divisor: int = 32,
) -> None:
    """What can be said before a model is there: options, packages, and whether the files can be written.

    Raises OptionError, ExportError and OSError.
    """
    check_options(format, precision, size, batch, dynamic, divisor)
    if format_of(path) != format:
        raise ExportError(f"{path}: the name of a file of format={format} ends in {SUFFIXES[format]}")
    check_packages(format, precision)
    files = [*parts_of(path), beside(path)]
    check_writable(*files)
    present = [file for file in files if os.path.lexists(file)]
    if present and not (len(present) == len(files) and at_export(path).sha256 == sha256(path)):
        raise ExportError(
            f"{present[0]} exists, and is no export with its certificate, which may be replaced: choose "
            "another output, or move it away"
        )


def put_in_place(files: Sequence[Path], folder: Path) -> None:
    """Move files into a folder on the same disk; where that fails or is interrupted, what was there stays."""
    before = [(folder / file.name, file.with_name(f"{file.name}.before")) for file in files]
    for file in files:
        with open(file, "rb") as content:
            os.fsync(content.fileno())
    for present, kept in before:
        if present.exists():
            try:
                os.link(present, kept)
            except OSError:  # some file systems have no links
                shutil.copy2(present, kept)
    try:
        for file in reversed(files):
            file.replace(folder / file.name)
    except BaseException:
        for present, kept in before:
            if kept.exists():
                kept.replace(present)
            else:
                present.unlink(missing_ok=True)
        raise


def export_for(
    model: FasterRCNN, format: Format, size: tuple[int, int], inputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """What a file of the format returns for inputs of this size; the file is gone afterward."""
    info = described(model, format, size, len(inputs[0]))
    check_packages(format, "float32")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"model{SUFFIXES[format]}"
        write(exported_program(model, info), written, info)
        return load(written, run_code=True)._run(*inputs, details=False)


def described(
    model: FasterRCNN,
    format: Format,
    size: tuple[int, int],
    batch: int,
    dynamic: bool = False,
    precision: ExportPrecision = "float32",
) -> ExportInfo:
    """What a file of this model will say of itself. Raises OptionError for options that the format lacks."""
    return ExportInfo(
        format=format,
        precision=precision,
        size=size,
        batch=batch,
        dynamic=dynamic,
        model=model.config,
        data=model.data,
        class_names=model.class_names,
        weights=model.fingerprint(),
        versions=versions(format, precision),
    )


def verify_file(
    path: Path,
    load_model: Callable[[str, str | None, str | None], FasterRCNN],
    source: tuple[str, str] = ("", ""),
    images: Sequence[str | Path] = (),
    run_code: bool = False,
) -> Certificate:
    """Compare an exported file with its model again; nothing is written.

    load_model: from a model's name, its weights and a device. source: the model and its weights; images: what
    to compare on. By default those of the certificate beside the file.

    Raises what `frcnn.runtime.load` and `certify` do, and ExportError where model or images are unknown, or
    the certificate is another file's.
    """
    detector = load(path, run_code)
    known = at_export(path)
    if known.sha256 not in ("", sha256(path)):
        raise ExportError(f"{path} is not the file of {beside(path)}: it was changed since")
    source = source if source[0] else known.source
    if not source[0]:
        raise ExportError(
            f"{path}: {beside(path)} is missing or damaged, or does not say which model it was made from: "
            "name it with model=MODEL"
        )
    try:
        loaded = load_model(source[0], source[1] or None, "cpu")
    except (ValueError, KeyError, OSError) as error:
        if source == known.source:
            text = f"{path}: its certificate says that it was made from {source[0]}, which cannot be loaded"
            raise ExportError(f"{text}: {error}; name the model with model=MODEL") from None
        raise
    chosen = real_images(images or known.images, len(known.images) or 32, loaded.data.channels)
    with evaluating(loaded):
        return certify(detector, loaded, chosen, source)


def trtexec(path: Path, info: ExportInfo) -> str:
    """The command that makes an engine of a file of format "tensorrt", and times it."""
    command = f"trtexec --onnx={path} --stronglyTyped --saveEngine={path.with_suffix('.engine')}"
    if not info.dynamic:
        return command
    height, width = info.size
    for name, batch, rows, columns in (
        ("min", 1, LEAST_SIDE, LEAST_SIDE),
        ("opt", info.batch, height, width),
        ("max", max(8, info.batch), max(height, width), max(height, width)),
    ):
        command += f" --{name}Shapes=images:{batch}x{rows}x{columns}x3,sizes:{batch}x2,scales:{batch}x2"
    return command


def format_of(path: Path) -> Format | None:
    """By the longest ending that fits."""
    fitting = [format for format, suffix in SUFFIXES.items() if path.name.endswith(suffix)]
    return max(fitting, key=lambda format: len(SUFFIXES[format]), default=None)
