"""Run an exported detector: `frcnn.runtime.load("best.onnx").predict("street.jpg")`.

What `load` returns answers `predict` and `stream` as the model did that was exported, and `frcnn detect` and
`frcnn eval` take such files as their model. It computes on the CPU.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frcnn.checked import OptionError
from frcnn.export.formats import METADATA
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
from frcnn.files import digest_of
from frcnn.inference.hardware import limit_threads
from frcnn.inference.stream import Predictor
from frcnn.preprocess import Prepared

Run = Callable[..., tuple[Tensor, ...]]
"""images, sizes and scales -> boxes, scores, labels and counts, as `frcnn.export.program` says."""


def load(path: str | Path, run_code: bool = False) -> ExportedDetector:
    """An exported detector, ready to predict, with as many threads as torch has now.

    path: a file that `frcnn export` wrote; for OpenVINO the .xml, with its .bin beside it.
    run_code: a .pt2 file can do whatever this process may: AOTInductor's holds machine code, and torch.export
        evaluates texts of its own as Python. It is loaded only where this is True; set it for files of your
        own. ONNX and OpenVINO files run no code.

    Raises FileNotFoundError, ExportError for a file that `frcnn export` did not write or whose backend is not
    installed, and OptionError for a .pt2 file without run_code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not is_exported(path):
        raise ExportError(f"{path}: an exported detector's name ends in {', '.join(SUFFIXES.values())}")
    if path.suffix == ".pt2" and not run_code:
        raise OptionError(
            f"{path} can run code, as torch's archives can: pass run_code=True if the file is your own"
        )
    readers: dict[str, Callable[[Path], tuple[Run, ExportInfo, str]]]
    readers = {
        ".onnx": _onnx,
        ".xml": _openvino,
        ".pt2": _aoti if path.name.endswith(".aoti.pt2") else _torch,
    }
    limit_threads()
    return ExportedDetector(*readers[path.suffix](path), path=path)


class ExportedDetector(Predictor):
    """A detector in an exported file; `load` makes one. It answers `predict` and `stream` as the model does.

    A file of one size resizes images to fit that size as well as the recipe's and fills up the rest with
    zeros, where the model pads to multiples of 32: near an image's border detections differ a little, as they
    do where MMDetection pads an image to another one's size, and an upright image becomes smaller in a file
    for wide ones. A dynamic file takes images as the model does, but for sides below LEAST_SIDE.
    """

    def __init__(self, run: Run, info: ExportInfo, runtime: str, path: Path):
        self.config, self.data, self.class_names = info.model, info.data, info.class_names
        self.info, self.path = info, path
        self.runtime = runtime
        """What runs the file, in which version."""
        self.shape = None if info.dynamic else info.size
        self.batch = None if info.dynamic else info.batch
        self._call = run

    def __repr__(self) -> str:
        return f"ExportedDetector({self.path}: {self.info})"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def fingerprint(self) -> str:
        """Equal for files of equal weights, configuration, format, size and precision."""
        return f"{self.info.weights} {self.info}"

    def check_size(self, size: tuple[int, int] | None) -> None:
        super().check_size(size)
        if self.info.dynamic and max(size or self.data.size) > MOST_SIDE:
            raise OptionError(
                f"size={size or self.data.size}: {self.path} takes sides of {MOST_SIDE} at most"
            )

    def _shaped(self, image: Prepared) -> Prepared:
        """With zeros at the right and below up to the least size of a dynamic file."""
        height, width = image.padded_size
        if self.info.dynamic:
            height, width = max(height, LEAST_SIDE), max(width, LEAST_SIDE)
        return image._replace(padded_size=(height, width))

    def _run(self, images: Tensor, sizes: Tensor, scales: Tensor, details: bool) -> tuple[Tensor, ...]:
        if details:
            raise OptionError("details=True: an exported file has detections alone; ask the model itself")
        found = self.outputs(images, sizes, scales)
        self._check(found, sizes.flip(1) / scales)
        return found

    def outputs(self, images: Tensor, sizes: Tensor, scales: Tensor) -> tuple[Tensor, ...]:
        """What the file returns for any number of images, its batches filled up, as it is.

        Raises OptionError for images that it does not take, and ExportError where its runtime fails.
        """
        info = self.info
        if images.dtype != torch.uint8 or images.shape[3] != info.data.channels:
            raise OptionError(
                f"an exported file takes uint8 images [B, H, W, {info.data.channels}], not {images.dtype} of "
                f"{tuple(images.shape)}"
            )
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
        missing = 0 if info.dynamic else -len(images) % most
        inputs = [images, sizes, scales]
        if missing:  # black images of one pixel
            inputs = [torch.cat([x, x.new_full((missing, *x.shape[1:]), fill)])
                      for x, fill in zip(inputs, (0, 1, 1), strict=True)]  # fmt: skip
        try:
            parts = [self._call(*batch) for batch in zip(*(x.split(most) for x in inputs), strict=True)]
            together = [outs[0] if len(outs) == 1 else torch.cat(outs) for outs in zip(*parts, strict=True)]
            return tuple(out[: len(images)] if missing else out for out in together)
        except Exception as error:  # of kinds of each backend
            raise ExportError(
                f"{self.path}: its runtime failed with {len(images)} images of {height}x{width}: {error}"
            ) from None

    def _check(self, found: tuple[Tensor, ...], limits: Tensor) -> None:
        """Raises ExportError unless these are detections: a file may have been changed, or made to harm.

        limits: [B, 2], the images' widths and heights, in the boxes' pixels.
        """
        images, most = len(limits), self.config.roi_head.max_detections
        expected = {
            "boxes": (torch.float32, (images, most, 4)),
            "scores": (torch.float32, (images, most)),
            "labels": (torch.int64, (images, most)),
            "counts": (torch.int64, (images,)),
        }
        kinds = [(out.dtype, tuple(out.shape)) for out in found]
        wrong = f"{self.path} returned what is no detections, so it is damaged or not what was exported"
        if kinds != list(expected.values()):
            raise ExportError(f"{wrong}: {kinds}, not {expected}")
        boxes, scores, labels, counts = found
        if not ((counts >= 0) & (counts <= most)).all():
            raise ExportError(f"{wrong}: counts outside 0 to {most}")
        used = torch.arange(most) < counts[:, None]
        sides = limits[:, None].expand(-1, most, -1)[used] * 1.01 + 1  # some rounding
        inside = (boxes[used] >= -1) & (boxes[used] <= sides.repeat(1, 2))  # not where a number is none
        ordered = boxes[used][:, :2] <= boxes[used][:, 2:]
        if not (inside.all() and ordered.all() and ((scores[used] >= 0) & (scores[used] <= 1)).all()):
            raise ExportError(f"{wrong}: boxes inverted or outside their image, or scores outside 0 to 1")
        if not ((labels[used] >= 0) & (labels[used] < self.config.num_classes)).all():
            raise ExportError(f"{wrong}: labels outside its {self.config.num_classes} classes")


def _onnx(path: Path) -> tuple[Run, ExportInfo, str]:
    onnxruntime = _package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has an exception class for each kind of failure, under no common one
        raise ExportError(f"{path}: ONNX Runtime cannot read it: {error}") from None
    text = session.get_modelmeta().custom_metadata_map.get(KEY)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        feed = {name: x.contiguous().numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, feed)))

    return run, _info(text, path), f"onnxruntime {onnxruntime.__version__}"


def _openvino(path: Path) -> tuple[Run, ExportInfo, str]:
    openvino = _package("openvino")
    core = openvino.Core()
    try:
        model = core.read_model(path)
        text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        info = _info(text, path)
        hint = {"bfloat16": "bf16", "float16": "f16"}.get(info.precision, "f32")
        if digest_of(path.with_suffix(".bin")) != info.bin_sha256:
            raise ExportError(f"{path}: the .bin beside it is another model's: export it again")
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint, **threads})
    except (RuntimeError, OSError) as error:
        raise ExportError(f"{path}: OpenVINO cannot read it: {error}") from None

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        request = compiled.create_infer_request()  # one per call, as threads may call at once
        found = request.infer([x.contiguous().numpy() for x in inputs])
        return tuple(torch.from_numpy(value.copy()) for value in found.values())

    # a hint is not obeyed where the CPU has no such arithmetic
    computes = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return run, info, f"openvino {metadata.version('openvino')} computing in {computes}"


def _torch(path: Path) -> tuple[Run, ExportInfo, str]:
    info = _info(_member(path), path)
    try:
        program = torch.export.load(path).module()
    except Exception as error:  # of many kinds, for a damaged graph
        raise ExportError(f"{path}: torch.export cannot read it: {error}") from None

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return program(*inputs)

    return run, info, "torch.export"


def _aoti(path: Path) -> tuple[Run, ExportInfo, str]:
    info = _info(_member(path), path)
    try:
        package = torch._inductor.aoti_load_package(str(path))
    except Exception as error:
        raise ExportError(f"{path}: AOTInductor cannot load it: {error}") from None
    return lambda *inputs: tuple(package(*(x.contiguous() for x in inputs))), info, "AOTInductor"


def _member(path: Path) -> str | None:
    """What an archive of torch's says of itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.partition("/")[2] == METADATA:
                    return archive.read(name).decode()
    except Exception as error:  # zipfile and zlib have one for each kind of damage
        raise ExportError(f"{path}: not an archive of torch's, or damaged ({error})") from None
    return None


def _info(text: str | None, path: Path) -> ExportInfo:
    if text is None:
        raise ExportError(f"{path}: `frcnn export` did not write it: there is no {KEY!r} in its metadata")
    return ExportInfo.from_json(text, path)


def _package(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise ExportError(f"{name} is not installed, which runs such files: pip install {name}") from None
