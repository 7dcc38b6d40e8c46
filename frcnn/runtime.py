"""Run an exported detector: `frcnn.runtime.load("best.onnx").predict("street.jpg")`.

What `load` returns answers `predict` and `stream` as the model did that was exported, and `frcnn detect` and
`frcnn eval` take such files as their model. It computes on the CPU.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from frcnn.checked import OptionError
from frcnn.export.formats import METADATA, check_packages
from frcnn.export.info import (
    INPUTS,
    KEY,
    LEAST_SIDE,
    MOST_BATCH,
    MOST_SIDE,
    SUFFIXES,
    ExportError,
    ExportInfo,
    is_exported,
)
from frcnn.inference.hardware import available_cpus, limit_threads
from frcnn.inference.stream import Predictor
from frcnn.preprocess import Prepared

Run = Callable[..., tuple[Tensor, ...]]
"""images, sizes and scales -> boxes, scores, labels and counts, as `frcnn.export.program` says."""

MOST_BYTES = 4 << 30
"""A torch archive that says it unpacks to more is not read."""


def load(path: str | Path, run_code: bool = False) -> ExportedDetector:
    """An exported detector, ready to predict.

    path: a file that `frcnn export` wrote; for OpenVINO the .xml, with its .bin beside it.
    run_code: a package of AOTInductor is a program and can do whatever this process may. It is loaded only
        where this is True; set it for files of your own. No other format can run code of the file's.

    Raises FileNotFoundError, ExportError for a file that `frcnn export` did not write or whose backend is not
    installed, and OptionError for an AOTInductor package without run_code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not is_exported(path):
        raise ExportError(f"{path}: an exported detector's name ends in {', '.join(SUFFIXES.values())}")
    readers: dict[str, Callable[[Path], tuple[Run, ExportInfo]]]
    readers = {
        ".onnx": _onnx,
        ".xml": _openvino,
        ".pt2": _aoti if path.name.endswith(".aoti.pt2") else _torch,
    }
    if readers[path.suffix] is _aoti and not run_code:
        raise OptionError(
            f"{path} is a package of AOTInductor, whose machine code would be run: pass run_code=True if the "
            "file is your own"
        )
    run, info = readers[path.suffix](path)
    return ExportedDetector(run, info, path)


class ExportedDetector(Predictor):
    """A detector in an exported file; `load` makes one. It answers `predict` and `stream` as the model does.

    A file of one size resizes images to fit that size as well as the recipe's, so that an upright image
    becomes smaller in a file for wide ones than the model would make it. A dynamic file takes images as the
    model does, those of less than LEAST_SIDE pixels with more zeros beside them.
    """

    def __init__(self, run: Run, info: ExportInfo, path: Path):
        self.config, self.data, self.class_names = info.model, info.data, info.class_names
        self.info, self.path = info, path
        self.shape = None if info.dynamic else info.size
        self._call = run

    def __repr__(self) -> str:
        return f"ExportedDetector({self.path}: {self.info})"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def fingerprint(self) -> str:
        """Equal for files of equal weights, configuration, format, size and precision."""
        return f"{self.info.weights} {self.info}"

    def _shaped(self, image: Prepared) -> Prepared:
        """With zeros at the right and below up to the least size of a dynamic file."""
        height, width = image.padded_size
        if self.info.dynamic:
            height, width = max(height, LEAST_SIDE), max(width, LEAST_SIDE)
        return image._replace(padded_size=(height, width))

    def _run(self, images: Tensor, sizes: Tensor, scales: Tensor, details: bool) -> tuple[Tensor, ...]:
        info = self.info
        if details:
            raise OptionError("details=True: an exported file has detections alone; ask the model itself")
        if images.dtype != torch.uint8:
            raise OptionError(f"an exported file takes uint8 images [B, H, W, 3], not {images.dtype}")
        height, width = images.shape[1:3]
        if not info.dynamic and (height, width) != info.size:
            raise OptionError(
                f"{self.path} takes images of {info.size[0]}x{info.size[1]}, not {height}x{width}"
            )
        if info.dynamic and not all(LEAST_SIDE <= side <= MOST_SIDE for side in (height, width)):
            raise OptionError(
                f"{self.path} takes sides of {LEAST_SIDE} to {MOST_SIDE} pixels, not {height}x{width}"
            )
        most = MOST_BATCH if info.dynamic else info.batch
        parts = []
        for start in range(0, len(images), most):
            inputs = [x[start : start + most] for x in (images, sizes, scales)]
            count = len(inputs[0])
            if not info.dynamic and count < most:  # black images of one pixel
                inputs = [torch.cat([x, x.new_full((most - count, *x.shape[1:]), fill)])
                          for x, fill in zip(inputs, (0, 1, 1), strict=True)]  # fmt: skip
            parts.append([out[:count] for out in self._call(*inputs)])
        return tuple(torch.cat(outs) for outs in zip(*parts, strict=True))


def _onnx(path: Path) -> tuple[Run, ExportInfo]:
    onnxruntime = _package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has an exception class for each kind of failure, under no common one
        raise ExportError(f"{path}: ONNX Runtime cannot read it: {error}") from None
    text = session.get_modelmeta().custom_metadata_map.get(KEY)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        feed = {name: x.contiguous().numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, feed)))

    return run, _info(text, path)


def _openvino(path: Path) -> tuple[Run, ExportInfo]:
    openvino = _package("openvino")
    core = openvino.Core()
    try:
        model = core.read_model(path)
        text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        info = _info(text, path)
        hint = {"bfloat16": "bf16", "float16": "f16"}.get(info.precision, "f32")
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    except RuntimeError as error:
        raise ExportError(f"{path}: OpenVINO cannot read it: {error}") from None

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        request = compiled.create_infer_request()  # one per call, as threads may call at once
        found = request.infer([x.contiguous().numpy() for x in inputs])
        return tuple(torch.from_numpy(value.copy()) for value in found.values())

    return run, info


def _torch(path: Path) -> tuple[Run, ExportInfo]:
    archive, text = _checked_archive(path)
    info = _info(text, path)
    limit_threads()
    try:
        program = torch.export.load(archive).module()
    except Exception as error:  # of many kinds, for a damaged graph
        raise ExportError(f"{path}: torch.export cannot read it: {error}") from None

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return program(*inputs)

    return run, info


def _aoti(path: Path) -> tuple[Run, ExportInfo]:
    with _opened(path) as archive:
        info = _info(_member(archive, METADATA), path)
    limit_threads()
    try:
        package = torch._inductor.aoti_load_package(str(path))
    except RuntimeError as error:
        raise ExportError(f"{path}: AOTInductor cannot load it: {error}") from None
    return lambda *inputs: tuple(package(*(x.contiguous() for x in inputs))), info


def _info(text: str | None, path: Path) -> ExportInfo:
    if text is None:
        raise ExportError(f"{path}: `frcnn export` did not write it: there is no {KEY!r} in its metadata")
    info = ExportInfo.from_json(text, path)
    check_packages(info)
    return info


def _package(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise ExportError(
            f"{name} is not installed, which runs such files: pip install 'frcnn[export]'"
        ) from None


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ExportError(f"{path}: not an archive of torch's ({error})") from None
    if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
        archive.close()
        raise ExportError(f"{path}: it unpacks to more than {MOST_BYTES >> 30} GiB")
    return archive


def _member(archive: zipfile.ZipFile, name: str) -> str | None:
    for member in archive.namelist():
        if PurePosixPath(member).parts[1:] == PurePosixPath(name).parts:
            return archive.read(member).decode(errors="replace")
    return None


def _checked_archive(path: Path) -> tuple[io.BytesIO, str | None]:
    """A copy of torch.export's archive in memory, from which no pickle is loaded, and its metadata.

    torch.export.load unpickles, without a look at what it runs, a weight or constant that the archive says is
    pickled, objects of other kinds, and example inputs that its safe reader refuses. Our files have none of
    them, so an archive with any is refused. torch reads the copy, which holds what was checked and no more.
    """
    copy = io.BytesIO()
    with _opened(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as checked:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ExportError(f"{path}: two of its members have one name")
        for name in names:
            try:
                content = archive.read(name)
            except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
                raise ExportError(f"{path}: it is damaged ({error})") from None
            kind = "/".join(PurePosixPath(name).parts[1:])
            if (content and kind.startswith("data/sample_inputs/")) or _unpickles(kind, content):
                raise ExportError(
                    f"{path}: {kind} is a pickle, which could run code; `frcnn export` writes none"
                )
            checked.writestr(zipfile.ZipInfo(name), content)
        text = _member(archive, METADATA)
    copy.seek(0)
    return copy, text


def _unpickles(kind: str, content: bytes) -> bool:
    """Whether torch would unpickle something because of this member."""
    if kind.startswith("data/constants/") and not kind.startswith("data/constants/tensor_"):
        return not kind.endswith(".json") or _pickled_entries(content)
    return kind.startswith("data/weights/") and kind.endswith(".json") and _pickled_entries(content)


def _pickled_entries(content: bytes) -> bool:
    try:
        entries = json.loads(content)["config"].values()
        return any(entry.get("use_pickle", True) is not False for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError):
        return True  # not the file that we know
