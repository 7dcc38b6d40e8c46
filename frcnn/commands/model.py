"""What several commands take: which model, on which device, in which precision; and the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagConversionOff, arg

from frcnn.checked import OptionError
from frcnn.config import ViewConfig

if TYPE_CHECKING:
    from frcnn.detector import FasterRCNN
    from frcnn.inference.stream import Predictor


def default(metavar: str, value: str, help: str | None = None) -> Any:
    """An option that may be left out, and what that means."""
    return arg(metavar=metavar, help=help, help_behavior_hint=f"(default: {value})")


Model = Annotated[
    str,
    arg(
        metavar="MODEL",
        help="A checkpoint that `frcnn train` wrote, a file that `frcnn export` wrote, or a recipe's name "
        "(see `frcnn models`).",
    ),
]
Weights = Annotated[
    str | None,
    default(
        "PATH|coco",
        "coco",
        "With a recipe's name: the checkpoint to load, of MMDetection, torchvision or detectron2 too, or "
        "coco to download the published one.",
    ),
]
Device = Annotated[str | None, default("DEVICE", "cuda if any", "cpu, cuda or cuda:1.")]
Precision = Annotated[
    Literal["float32", "tf32", "bfloat16", "float16"],
    arg(
        help="float32 changes no result. tf32 (NVIDIA GPUs) and the 16-bit formats are faster and change "
        "results a little; they are refused where the hardware has no such arithmetic."
    ),
]
Views = Annotated[ViewConfig, FlagConversionOff]
BatchSize = Annotated[int, arg(help="Images per forward pass on a GPU; on a CPU they go one by one.")]
Images = Annotated[Path, arg(metavar="DIR", help="The folder that the file's image names are relative to.")]
Annotations = Annotated[
    Path,
    arg(metavar="FILE", help="A COCO file, VOC's XML folder or image set, or YOLO's data.yaml."),
]

RunCode = Annotated[
    bool,
    arg(
        help="Where the model is a .pt2 file: load it, although it can run code that does whatever you may. "
        "For files of your own."
    ),
]

CHECKPOINTS = {".pth", ".pt", ".safetensors"}


def load_model(model: str, weights: str | None, device: str | None) -> FasterRCNN:
    """A checkpoint that training wrote, or a recipe with weights."""
    from frcnn.export.info import is_exported
    from frcnn.inference.hardware import resolve_device
    from frcnn.zoo.build import build, load

    chosen = resolve_device(device)
    path = Path(model)
    if is_exported(model):
        raise OptionError(f"{model} is an exported file: name the checkpoint that it was made from")
    if path.suffix in CHECKPOINTS:
        if weights is not None:
            raise OptionError(f"{model} is a checkpoint: weights= goes with a recipe's name as the model")
        return load(path, device=chosen)
    if path.is_dir():
        raise OptionError(f"{model} is a folder: name a checkpoint in it, such as {path / 'best.pth'}")
    return build(model, weights=weights or "coco", device=chosen)


def load_detector(
    model: str,
    weights: str | None,
    device: str | None,
    precision: Precision,
    run_code: bool,
    views: ViewConfig = ViewConfig(),  # noqa: B008
) -> Predictor:
    from frcnn.inference.views import ViewsDetector

    detector = _one_view(model, weights, device, precision, run_code)
    return detector if views == ViewConfig() else ViewsDetector(detector, views)


def _one_view(
    model: str, weights: str | None, device: str | None, precision: Precision, run_code: bool
) -> Predictor:
    from frcnn.export.info import is_exported
    from frcnn.inference.hardware import check_precision, resolve_device

    if is_exported(model):
        from frcnn import runtime

        if weights is not None or device not in (None, "cpu") or precision != "float32":
            raise OptionError(
                f"{model} is an exported file, with its own weights and precision, for the CPU: leave out "
                "weights=, device= and precision="
            )
        return runtime.load(model, run_code)
    check_precision(precision, resolve_device(device))  # before the weights are read, or downloaded
    return load_model(model, weights, device).optimize(precision)


def files_of(model: str, weights: str | None) -> list[str | Path]:
    """What is read of a model, with what belongs to an exported file."""
    from frcnn.export.certificate import beside, parts_of

    return [*parts_of(Path(model)), beside(Path(model)), *([weights] if weights else [])]


def check_exists(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
