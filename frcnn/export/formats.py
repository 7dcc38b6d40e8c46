"""One writer per format: an exported program -> files."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

import frcnn_ops
from frcnn.export.info import INPUTS, KEY, OUTPUTS, ExportError, ExportInfo, Format
from frcnn.files import digest_of

OPSET = 18
METADATA = f"extra/{KEY}.json"
"""Of torch's archives, below their own folder."""

NEEDED: dict[Format, tuple[str, ...]] = {
    "torch": (),
    "aoti": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "tensorrt": ("onnx", "onnxscript", "onnxruntime"),
}
"""Packages that writing and running a format takes."""

NO_SHA256 = "0" * 64
"""In the place of one that is not known yet."""

Calibration = Iterable[tuple[Tensor, Tensor, Tensor]]


def check_packages(format: Format, precision: str) -> None:
    """Raises ExportError, naming them, where packages for the format are missing."""
    needed = packages(format, precision)
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"format={format}, precision={precision} needs {', '.join(needed)}, some of which are missing: "
            f"pip install {' '.join(missing)}, or frcnn with its extra export"
        )


def packages(format: Format, precision: str) -> tuple[str, ...]:
    return NEEDED[format] + (("nncf",) if precision == "int8" else ())


def versions(format: Format, precision: str) -> dict[str, str]:
    """Of frcnn, torch and the packages that write the format."""
    from frcnn import __version__

    names = ("torch", *packages(format, precision))
    return {"frcnn": __version__, **{name: metadata.version(name) for name in names}}


def write(program: ExportedProgram, path: Path, info: ExportInfo, calibration: Calibration = ()) -> None:
    """Write the file of the info's format; OpenVINO's .bin beside it."""
    writers: dict[Format, Callable[..., None]] = {
        "torch": _torch,
        "aoti": _aoti,
        "onnx": _onnx,
        "openvino": _openvino,
        "tensorrt": _onnx,
    }
    with quiet():
        writers[info.format](program, path, info, calibration)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporters of torch and NNCF say of themselves; errors are not kept back."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._inductor", "nncf")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Libraries raise errors of many kinds where they cannot write a file: an OSError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        raise OSError(number, f"could not be written; is the disk full? ({error})") from None


def _torch(program: ExportedProgram, path: Path, info: ExportInfo, _: Calibration) -> None:
    program._example_inputs = None  # or the file holds a pickle of them
    content = io.BytesIO()  # as torch's writer ends the process where the disk is full
    torch.export.save(program, content, extra_files={f"{KEY}.json": info.to_json()})
    with writing():
        path.write_bytes(content.getbuffer())


def _aoti(program: ExportedProgram, path: Path, info: ExportInfo, _: Calibration) -> None:
    if torch.__version__ < "2.11":
        raise ExportError(
            f"AOTInductor of torch {torch.__version__} hands operators other types than they are called "
            "with; use a newer torch, or another format"
        )
    height, width = map(str, info.size)
    content = io.BytesIO()
    try:
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=content,
                inductor_configs={"aot_inductor.metadata": {"height": height, "width": width}},  # for C++
            )
    except torch._inductor.exc.InductorError as error:
        first = "\n".join(str(error).splitlines()[:4])
        raise ExportError(
            "AOTInductor could not compile the model; it needs a C++ compiler (g++ on the path) and room for "
            f"what it compiles (in TORCHINDUCTOR_CACHE_DIR, or /tmp). {first}"
        ) from None
    with zipfile.ZipFile(content, "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{folder}/{METADATA}", info.to_json())
    with writing():
        path.write_bytes(content.getbuffer())


def onnx_program(program: ExportedProgram) -> Any:
    from onnxscript import opset18

    def foreach_copy(targets: Any, sources: Any, non_blocking: bool = False) -> Any:
        return tuple(
            opset18.CastLike(source, target) for source, target in zip(sources, targets, strict=True)
        )

    return torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        custom_translation_table={
            **frcnn_ops.onnx_translations(),
            torch.ops.aten._foreach_copy.default: foreach_copy,  # what `frcnn.conv.cast` calls
        },
        optimize=True,
        verbose=False,
    )


def _onnx(program: ExportedProgram, path: Path, info: ExportInfo, _: Calibration) -> None:
    import onnx

    proto = onnx_program(program).model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, info.to_json()
    onnx.checker.check_model(proto, full_check=True)
    with writing():
        onnx.save(proto, path)


def _openvino(program: ExportedProgram, path: Path, info: ExportInfo, calibration: Calibration) -> None:
    import openvino

    model = openvino.convert_model(_serialized(program))
    for place, name in zip(model.outputs, OUTPUTS, strict=False):
        place.get_tensor().set_names({name})
    if info.precision == "int8":
        model = _quantized(model, calibration)
    model.set_rt_info(replace(info, bin_sha256=NO_SHA256).to_json(), [KEY])
    with writing():
        openvino.save_model(model, path, compress_to_fp16=info.precision == "float16")
        # so that an .xml is never run with the .bin of another
        found = digest_of(path.with_suffix(".bin"))
        path.write_text(path.read_text().replace(NO_SHA256, found))


def _serialized(program: ExportedProgram) -> Any:
    return io.BytesIO(onnx_program(program).model_proto.SerializeToString())


def _quantized(model: Any, calibration: Calibration) -> Any:
    """int8 convolutions and products; what comes after them, where numbers are coordinates, stays float32."""
    import nncf

    nncf.set_log_level(logging.ERROR)  # its import sets another
    count = int(model.inputs[0].shape[0])
    batches = [
        dict(zip(INPUTS, (x.repeat(count, *[1] * (x.ndim - 1)).numpy() for x in one), strict=True))
        for one in calibration
    ]
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(
            types=["Add", "Subtract", "Multiply", "Divide", "Concat", "Minimum", "Maximum", "Exp", "Power"],
            validate=False,
        ),
    )
