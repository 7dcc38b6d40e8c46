"""Loads weights of any common origin into a detector, strictly.

It reads checkpoints of MMDetection 2.x and 3.x and of this package, bare state dicts, safetensors, and the
Faster R-CNN files of torchvision and detectron2. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frcnn.checked import is_name
from frcnn.checkpoint.names import from_detectron2, from_torchvision, recognize
from frcnn.checkpoint.records import ArrayRecord, Inert, TensorRecord
from frcnn.checkpoint.torch_file import (
    DOWNLOAD_AGAIN,
    CheckpointError,
    open_file,
    read_torch_file,
    reading,
    shown,
)
from frcnn.config import DataConfig, ModelConfig
from frcnn.zoo.coco import COCO_CLASSES

if TYPE_CHECKING:
    from frcnn.detector import FasterRCNN

__all__ = ["Checkpoint", "CheckpointError", "LoadReport", "load_checkpoint", "read_checkpoint"]

_NAMES_SHOWN = 5
_FREE_TO_UNFOLD = 256 << 20  # bytes
_CLASS_LAYER = "roi_head.bbox_head.fc_cls"
_HEADS = (_CLASS_LAYER, "roi_head.bbox_head.fc_reg")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors under the file's own names, and plain metadata."""

    tensors: dict[str, Tensor]
    origin: str = "the state dict"
    """The file's path, for messages."""
    class_names: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    """The recipe as plain values, where the file says it (our own checkpoints do)."""
    config_text: str = ""
    """MMDetection's configuration as text, where the file says it; for the eye, never evaluated."""
    notes: tuple[str, ...] = ()
    """What was left out of the file, in sentences."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did: whose names the file uses, and what the reader should know."""

    dialect: str
    class_names: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"loaded {self.dialect} weights", *(f"- {note}" for note in self.notes)])


def load_checkpoint(
    model: FasterRCNN,
    source: str | Path | Mapping[str, Any] | Checkpoint,
    reinit_heads: bool = False,
) -> LoadReport:
    """Fill ``model`` from a file or a state dict; every parameter must be there, fit, and be finite.

    The model takes over the file's class names. What differs for weights of another program is warned of and
    returned.

    Args:
        source: a path, a state dict, or a dict with "state_dict" (and "meta") as MMDetection writes it.
        reinit_heads: initialize the class and box layer afresh instead of loading them, for training on other
            classes; without it other classes are an error.

    Raises:
        CheckpointError: the file cannot be read, names, shapes or classes do not match, or weights are no
            finite real numbers; the message lists them. The model is unchanged.
    """
    checkpoint = read_checkpoint(source)
    tensors, class_names, dialect, warned = check_fit(model, checkpoint, reinit_heads)
    own = model.state_dict()
    with reading(
        checkpoint.origin
    ):  # whatever could fail (a kind of number, memory) does so before the model changes
        ready = {
            name: value.detach().to(own[name].device, own[name].dtype) for name, value in tensors.items()
        }
    for note in warned:
        warnings.warn(f"{checkpoint.origin}: {note}", stacklevel=2)
    model.load_state_dict({**own, **ready})
    if reinit_heads:
        model.roi_head.bbox_head.initialize_outputs()
    model.class_names = tuple(class_names) or model.class_names
    return LoadReport(dialect, model.class_names, (*warned, *checkpoint.notes))


def check_fit(
    model: FasterRCNN, checkpoint: Checkpoint, reinit_heads: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...], str, list[str]]:
    """(tensors under our names, class names, dialect, what to warn of) if they fit ``model``.

    The model's own numbers are not looked at: it may be on the meta device.

    Raises:
        CheckpointError: as `load_checkpoint` does.
    """
    with reading(checkpoint.origin):
        tensors, class_names, dialect, notes = our_names(checkpoint, model.config, model.data)
        warned = [*notes, *_style_notes(checkpoint, model)]
        wanted = model.state_dict()
        if reinit_heads:
            tensors = {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}
            wanted = {name: value for name, value in wanted.items() if not name.startswith(_HEADS)}
            warned.append(
                "class and box layer start afresh for "
                + _classes(model.config.num_classes, model.class_names)
            )
            class_names = model.class_names
        else:
            _check_classes(tensors, class_names, model)
        if spread_channels(tensors, "backbone.conv1.weight", wanted):
            warned.append(
                f"the first convolution's filters are of 3 channels and spread over {model.data.channels}: "
                "they are to be trained"
            )
        difference = compare(wanted, tensors)
        if difference:
            raise CheckpointError(f"the weights do not fit the model\n{difference}")
        check_numbers(tensors)
    return tensors, class_names, dialect, warned


def read_checkpoint(source: str | Path | Mapping[str, Any] | Checkpoint) -> Checkpoint:
    """Read weights and metadata, whatever wrote them; names are left as they are.

    Raises:
        CheckpointError: not a readable file, or no state dict in it.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        state, meta, notes = _find_state(source, Tensor)
        names, recipe, text = _metadata(meta)
        return Checkpoint(dict(state), "the state dict", names, recipe, text, notes)
    path = Path(source)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    file = read_torch_file(path)
    with reading(path):
        if not isinstance(file.content.value, Mapping):
            value = file.content.value
            kind = f"object of {value.path}" if isinstance(value, Inert) else type(value).__name__
            raise CheckpointError(f"holds one {kind}, not a state dict")
        state, meta, notes = _find_state(file.content.value, (TensorRecord, ArrayRecord))
        names, recipe, text = _metadata(meta)
    if file.content.left_out:
        notes += (f"objects left out: {_some(list(file.content.left_out))}",)
    if not names and "__author__" in file.content.value and _rows(state, "cls_score.bias") == 81:
        names = COCO_CLASSES  # detectron2's model zoo, whose classes are COCO's in the order of their ids
    return Checkpoint(file.tensors(state), str(path), names, recipe, text, notes)


def class_count(checkpoint: Checkpoint) -> int | None:
    """How many classes the weights are for; None where only a conversion of their names would tell."""
    if checkpoint.class_names:
        return len(checkpoint.class_names)
    rows = _rows(checkpoint.tensors, f"{_CLASS_LAYER}.bias")
    return None if rows is None or rows < 2 else rows - 1


def drop_wrapper_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the "module." of (Distributed)DataParallel and the "_orig_mod." of torch.compile."""
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in tensors.items()}


def compare(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected or of another shape, in lines; empty if nothing is.

    Batch norms' ``num_batches_tracked`` may be absent: older files lack it and nothing here uses it.
    """
    missing = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} has {tuple(given[name].shape)}, the model needs {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return "\n".join(f"  {len(names)} {what}: {_some(names)}" for what, names in parts.items() if names)


def spread_channels(tensors: dict[str, Tensor], name: str, wanted: Mapping[str, Tensor]) -> bool:
    """Makes the filters of three channels that are called `name` those of as many as are wanted: channel c
    gets the filter of channel c modulo 3, all of them scaled so that they add up to about what they did; one
    channel gets the sum, as a gray image repeated would. Whether there was something to do."""
    given, own = tensors.get(name), wanted[name]
    if given is None or given.ndim != 4 or given.shape[1] != 3 or own.shape[1] == 3:
        return False
    channels = own.shape[1]
    many = given[:, torch.arange(channels) % 3] * (3 / channels)
    tensors[name] = given.sum(1, keepdim=True) if channels == 1 else many
    return True


def check_dense(tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, naming them, for tensors that are not plain numbers in memory, and where they
    share memory so that their numbers, written out, would take far more than there is."""
    odd = [
        f"{name} ({'complex' if value.is_complex() else value.layout}, {value.dtype}, {value.device})"
        for name, value in tensors.items()
        if type(value.detach()) is not Tensor
        or value.layout != torch.strided
        or value.is_quantized
        or value.is_complex()
        or value.is_meta
        or value.is_nested
    ]
    if odd:
        raise CheckpointError(f"{len(odd)} tensors are not dense real numbers: {_some(odd)}")
    unfolded = sum(value.numel() * value.element_size() for value in tensors.values())
    memory = [value.untyped_storage() for value in tensors.values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in memory}.values())
    if unfolded > 2 * held + _FREE_TO_UNFOLD:
        raise CheckpointError(f"tensors of {unfolded} bytes share {held} bytes of memory; save them cloned")


def check_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, naming them, for integers, what float32 cannot hold, negative variances.

    Batch norms' ``num_batches_tracked`` may be integers.
    """
    integers, infinite, negative = [], [], []
    for name, value in tensors.items():
        if not value.is_floating_point():
            if not name.endswith("num_batches_tracked"):
                integers.append(f"{name} ({value.dtype})")
        elif value.numel():
            least, most = (value if value.itemsize > 1 else value.float()).aminmax()  # NaN if there is one
            least, most = least.float(), most.float()  # as the model will hold them
            if not least.isfinite() or not most.isfinite():
                infinite.append(name)
            elif least < 0 and name.endswith("running_var"):
                negative.append(name)
    for names, what in [
        (integers, "not floating-point numbers"),
        (infinite, "not finite"),
        (negative, "negative variances"),
    ]:
        if names:
            raise CheckpointError(f"{len(names)} tensors are {what}: {_some(names)}")


def _find_state(value: Mapping[str, Any], kinds: Any) -> tuple[dict[str, Any], Any, tuple[str, ...]]:
    """(state dict, meta, notes): the state dict is under "state_dict" or "model", or is the value itself."""
    state: Any = value
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(value.get(key), Mapping):
            state = value[key]
            break
    unread = [
        f"{shown(name)} ({entry.path})"
        for name, entry in state.items()
        if isinstance(entry, Inert) and re.match(r"tensor |torch\._utils\._rebuild_", entry.path)
    ]
    if unread:
        raise CheckpointError(f"{len(unread)} tensors are not dense real numbers: {_some(unread)}")
    tensors = {name: entry for name, entry in state.items() if isinstance(entry, kinds) and type(name) is str}
    others = [name for name in state if name not in tensors]
    if not tensors:
        raise CheckpointError(
            "no state dict found; " + (f"the keys are {_some(list(value))}" if value else "it is empty")
        )
    notes = (f"entries that are no tensors were left out: {_some(others)}",) if others else ()
    return tensors, value.get("meta") or value.get("metadata"), notes


def _metadata(meta: Any) -> tuple[tuple[str, ...], Mapping[str, Any] | None, str]:
    """(class names, recipe, configuration text) of MMDetection's "meta", 2.x or 3.x, or of ours."""
    if not isinstance(meta, Mapping):
        return (), None, ""
    dataset = meta.get("dataset_meta")
    homes = (dataset if isinstance(dataset, Mapping) else {}, meta)
    found = [home[key] for home in homes for key in ("classes", "CLASSES") if key in home]
    names = found[0] if found else ()
    if isinstance(names, str):  # a data set of one class is sometimes written without its tuple
        names = (names,)
    if not isinstance(names, list | tuple) or any(not isinstance(name, str) for name in names):
        names = ()
    for name in names:
        if not is_name(name):
            raise CheckpointError(f"its class name {shown(name)} is no text without control characters")
    recipe = meta.get("recipe")
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    return tuple(names), recipe if isinstance(recipe, Mapping) else None, text


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    with reading(path):
        open_file(path).close()
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise CheckpointError(
                f"damaged, incomplete or no safetensors file ({shown(str(error))}); {DOWNLOAD_AGAIN}"
            ) from error
        names, recipe, _ = _metadata(json.loads(meta.get("frcnn", "{}")))
    return Checkpoint(tensors, str(path), names, recipe)


def our_names(
    checkpoint: Checkpoint, model: ModelConfig, data: DataConfig
) -> tuple[dict[str, Tensor], tuple[str, ...], str, tuple[str, ...]]:
    """(tensors under our names, class names, dialect, notes on what differs), for a model so configured.

    Raises:
        CheckpointError: weights of another architecture or style.
    """
    tensors = drop_wrapper_prefixes(checkpoint.tensors)
    check_dense(tensors)
    dialect = recognize(tensors)
    if dialect == "mmdetection 1.x":
        raise CheckpointError(
            "written by MMDetection 1.x, whose boxes and background class differ; upgrade it with "
            "MMDetection 2.x's tools/model_converters/upgrade_model_version.py"
        )
    if dialect == "mmdetection":
        # 3.x keeps the normalization in the state dict, the EMA hook a second copy of every parameter
        dropped = ("data_preprocessor.", "ema_")
        kept = {name: value for name, value in tensors.items() if not name.startswith(dropped)}
        return kept, checkpoint.class_names, dialect, ()
    convert = from_torchvision if dialect == "torchvision" else from_detectron2
    converted = convert(tensors, model, data)
    return converted.tensors, checkpoint.class_names or converted.class_names, dialect, converted.notes


def _check_classes(tensors: Mapping[str, Tensor], class_names: tuple[str, ...], model: FasterRCNN) -> None:
    rows = _rows(tensors, f"{_CLASS_LAYER}.bias")
    count = model.config.num_classes
    if rows is not None and rows - 1 != count:
        raise CheckpointError(
            f"it knows {_classes(rows - 1, class_names)}, the model {_classes(count, model.class_names)}; "
            f"build the model with num_classes={rows - 1}, or pass reinit_heads=True to train other classes"
        )
    if class_names and len(class_names) != count:
        raise CheckpointError(f"it names {_classes(len(class_names), class_names)} for weights of {count}")
    if class_names and model.class_names and class_names != model.class_names:
        index = next(i for i in range(count) if class_names[i] != model.class_names[i])
        theirs, ours = shown(class_names[index]), shown(model.class_names[index])
        raise CheckpointError(
            f"class {index} is '{theirs}' in it and '{ours}' in the model; "
            "build the model without class_names to take the file's, or pass reinit_heads=True to train them"
        )


def _style_notes(checkpoint: Checkpoint, model: FasterRCNN) -> tuple[str, ...]:
    """Caffe and pytorch style have the same names and shapes, so only the metadata can tell them apart."""
    style: Any = checkpoint.recipe
    if checkpoint.recipe is not None:
        for key in ("model", "backbone", "style"):
            style = style.get(key) if isinstance(style, Mapping) else None
    else:
        said = set(re.findall(r"""\bstyle=['"](pytorch|caffe)['"]""", checkpoint.config_text))
        style = said.pop() if len(said) == 1 else None
    if style not in ("pytorch", "caffe") or style == model.config.backbone.style:
        return ()
    return (
        f"these are weights of a {style}-style backbone and the model is {model.config.backbone.style} "
        "style: they load but detect nothing sensible; build the recipe of the file's style",
    )


def _rows(tensors: Mapping[str, Any], suffix: str) -> int | None:
    sizes = [tuple(value.shape) for name, value in tensors.items() if name.endswith(suffix)]
    return sizes[0][0] if sizes and sizes[0] else None


def _classes(count: int, names: tuple[str, ...]) -> str:
    return f"{count} classes" + (f" ({_some(list(names), 3)})" if names else "")


def _some(names: list[Any], most: int = _NAMES_SHOWN) -> str:
    rest = len(names) - most
    return ", ".join(shown(name) for name in names[:most]) + (f" and {rest} more" if rest > 0 else "")
