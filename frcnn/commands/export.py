"""`frcnn export` and `frcnn verify`: a model's numbers in another runtime, and the numbers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from frcnn.checked import OptionError
from frcnn.commands.model import CHECKPOINTS, Model, RunCode, Weights, check_exists, default, load_model


def export(
    model: Positional[Model],
    images: Annotated[
        tuple[Path, ...],
        arg(
            metavar="PATH [PATH …]",
            help="Images, or folders of them, that the file is certified on.",
            help_behavior_hint="(required)",
        ),
    ],
    format: Literal["torch", "aoti", "onnx", "openvino", "tensorrt"] = "onnx",
    output: Annotated[Path | None, default("FILE", "the model's name here, with the format's ending")] = None,
    size: Annotated[tuple[int, int] | None, default("HEIGHT WIDTH", "of a wide image, padded")] = None,
    batch: int = 1,
    dynamic: bool = False,
    precision: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"],
        arg(help="Of convolutions and products; int8 is OpenVINO's, calibrated on the images."),
    ] = "float32",
    most_images: int = 32,
    weights: Weights = None,
) -> None:
    """Write a model for another runtime, with a certificate that the numbers survived.

    The written file goes through real images beside the model. Where it does not find what the model finds,
    the differences are printed, stage by stage, and there is no file.

    Args:
        format: torch.export, AOTInductor, ONNX, OpenVINO, or ONNX as TensorRT takes it.
        batch: Images per run, for a file of one size.
        dynamic: Take any size and 1 to 64 images.
        most_images: How many of the images are compared.
    """
    from frcnn.export.certificate import real_images
    from frcnn.export.export import check_export, trtexec
    from frcnn.export.export import export as write
    from frcnn.export.info import SUFFIXES

    if not images:
        raise OptionError("name images, or a folder of some, that the file is certified on: images=PATH")
    for path in images:
        check_exists(path)
    output = output or Path(
        f"{Path(model).stem if Path(model).suffix in CHECKPOINTS else model}{SUFFIXES[format]}"
    )
    check_export(output, format, precision, size, batch, dynamic)
    real_images(images, most_images, channels=None)
    known = [
        str(Path(word).absolute()) if Path(word).exists() else word for word in (model, weights or "") if word
    ]
    certificate = write(
        load_model(model, weights, "cpu"),
        output,
        images,
        format=format,
        size=size,
        batch=batch,
        dynamic=dynamic,
        precision=precision,
        most_images=most_images,
        source=(known[0], known[1] if weights else ""),
    )
    print(certificate)
    if format == "tensorrt":
        print(f"TensorRT was not run. On a machine that has it:\n  {trtexec(output, certificate.info)}")


export.refused = {  # type: ignore[attr-defined]
    "--opset": "ONNX files are of opset 18, which is what is tested; leave it out",
    "--device": "files are made, and certified, on the CPU; TensorRT's is for GPUs: format=tensorrt",
}


def verify(
    cases: Positional[
        Annotated[tuple[str, ...], default("[CASE|FILE …]", "all cases", "Cases, or exported files.")]
    ] = (),
    device: Annotated[str, arg(metavar="DEVICE")] = "cpu",
    reference: Annotated[Path | None, default("DIR", "the small ones of the package")] = None,
    format: Annotated[
        Literal["torch", "aoti", "onnx", "openvino"] | None,
        default("FORMAT", "none", "Also check each case as a file of this format."),
    ] = None,
    model: Annotated[
        str | None, default("MODEL", "as at its export", "What an exported file was made from.")
    ] = None,
    weights: Weights = None,
    images: Annotated[
        tuple[Path, ...], default("PATH [PATH …]", "as at its export", "What to compare an exported file on.")
    ] = (),
    run_code: RunCode = False,
) -> int:
    """Recompute MMDetection's numbers on this machine, or an exported file's, and print the comparison.

    Args:
        device: Where to compute the cases.
        reference: Folder with full reference cases.
    """
    from frcnn.export.info import is_exported

    files = [Path(case) for case in cases if is_exported(case)]
    if files and len(files) < len(cases):
        raise OptionError("name cases or exported files, not both at once")
    if files:
        from frcnn.export.export import verify_file

        if device != "cpu" or reference is not None or format is not None:
            raise OptionError("device=, reference= and format= go with cases, and exported files are named")
        source = (model or "", weights or "")
        certificates = [verify_file(path, load_model, source, images, run_code) for path in files]
        print("\n\n".join(map(str, certificates)))
        return 0 if all(certificate.passed for certificate in certificates) else 1
    if model is not None or weights is not None or images:
        raise OptionError("model=, weights= and images= go with an exported file, and none is named")
    from frcnn.inference.hardware import resolve_device
    from frcnn.zoo.verify import verify

    if reference is not None:
        check_exists(reference)
    return 0 if verify(cases, resolve_device(device), reference, format) else 1
