"""Loads weights of any common origin into a detector, strictly.

Read are checkpoints of MMDetection 2.x and 3.x, of this package, bare state dicts, safetensors, and the
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
from torch import Tensor, nn

from frcnn.config import DataConfig, ModelConfig
from frcnn.zoo.coco import COCO_CLASSES
from frcnn.zoo.dialects import from_detectron2, from_torchvision, recognise
from frcnn.zoo.records import ArrayRecord, TensorRecord
from frcnn.zoo.torch_file import CheckpointError, read_torch_file

if TYPE_CHECKING:
    from frcnn.detector import FasterRCNN

__all__ = ["Checkpoint", "CheckpointError", "LoadReport", "load_checkpoint", "read_checkpoint"]

_NAMES_SHOWN = 5
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
    """Fill ``model`` from a file or a state dict; every parameter must be there and fit.

    The model takes over the file's class names. What differs for weights of another program is warned of and
    returned.

    Args:
        source: a path, a state dict, or a dict with "state_dict" (and "meta") as MMDetection writes it.
        reinit_heads: initialise the class and box layer afresh instead of loading them, for training on other
            classes; without it other classes are an error.

    Raises:
        CheckpointError: the file cannot be read, or names, shapes or classes do not match; the message lists
            them. The model is unchanged.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    try:
        tensors, class_names, dialect, notes = our_names(checkpoint, model.config, model.data)
        warned = [*notes, *_style_notes(checkpoint, model)]
        if reinit_heads:
            tensors = {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}
            warned.append(
                "class and box layer start afresh for "
                + _classes(model.config.num_classes, model.class_names)
            )
            class_names = model.class_names
        else:
            _check_classes(tensors, class_names, model)
        own = model.state_dict()
        wanted = {n: v for n, v in own.items() if not (reinit_heads and n.startswith(_HEADS))}
        difference = compare(wanted, tensors)
        if difference:
            raise CheckpointError(f"the weights do not fit the model\n{difference}")
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.origin}: {error}") from None
    model.load_state_dict({**own, **tensors})
    if reinit_heads:
        _initialise_heads(model)
    model.class_names = tuple(class_names) or model.class_names
    for note in warned:
        warnings.warn(f"{checkpoint.origin}: {note}", stacklevel=2)
    return LoadReport(dialect, model.class_names, (*warned, *checkpoint.notes))


def read_checkpoint(source: str | Path | Mapping[str, Any]) -> Checkpoint:
    """Read weights and metadata, whatever wrote them; names are left as they are.

    Raises:
        CheckpointError: not a readable file, or no state dict in it.
    """
    if isinstance(source, Mapping):
        state, meta, notes = _find_state(source, Tensor)
        names, recipe, text = _metadata(meta)
        return Checkpoint(dict(state), "the state dict", names, recipe, text, notes)
    path = Path(source)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    file = read_torch_file(path)
    if not isinstance(file.content.value, Mapping):
        raise CheckpointError(f"{path}: holds a {type(file.content.value).__name__}, not a state dict")
    try:
        state, meta, notes = _find_state(file.content.value, (TensorRecord, ArrayRecord))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if file.content.left_out:
        notes += (f"objects left out: {_some(list(file.content.left_out))}",)
    names, recipe, text = _metadata(meta)
    if not names and "__author__" in file.content.value and _rows(state, "cls_score.bias") == 81:
        names = COCO_CLASSES  # detectron2's model zoo, whose classes are COCO's in the order of their ids
    return Checkpoint(file.tensors(state), str(path), names, recipe, text, notes)


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


def _find_state(value: Mapping[str, Any], kinds: Any) -> tuple[dict[str, Any], Any, tuple[str, ...]]:
    """(state dict, meta, notes): the state dict is under "state_dict" or "model", or is the value itself."""
    state: Any = value
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(value.get(key), Mapping):
            state = value[key]
            break
    tensors = {name: entry for name, entry in state.items() if isinstance(entry, kinds) and type(name) is str}
    others = [str(name) for name in state if name not in tensors]
    if not tensors:
        raise CheckpointError(f"no state dict found; the keys are {_some([str(key) for key in value])}")
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
    recipe = meta.get("recipe")
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    return tuple(names), recipe if isinstance(recipe, Mapping) else None, text


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        plain = json.loads(meta.get("frcnn", "{}"))
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error
    names, recipe, _ = _metadata(plain)
    return Checkpoint(tensors, str(path), names, recipe)


def our_names(
    checkpoint: Checkpoint, model: ModelConfig, data: DataConfig
) -> tuple[dict[str, Tensor], tuple[str, ...], str, tuple[str, ...]]:
    """(tensors under our names, class names, dialect, notes on what differs), for a model so configured.

    Raises:
        CheckpointError: weights of another architecture or style.
    """
    tensors = drop_wrapper_prefixes(checkpoint.tensors)
    dialect = recognise(tensors)
    if dialect == "mmdetection 1.x":
        raise CheckpointError(
            "written by MMDetection 1.x, whose boxes and background class differ; upgrade it with "
            "MMDetection 2.x's tools/model_converters/upgrade_model_version.py"
        )
    if dialect == "mmdetection":
        # 3.x keeps the normalisation in the state dict, the EMA hook a second copy of every parameter
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
        raise CheckpointError(
            f"class {index} is {class_names[index]!r} in it and {model.class_names[index]!r} in the model; "
            "build the model without class_names to take the file's, or pass reinit_heads=True to train them"
        )


def _style_notes(checkpoint: Checkpoint, model: FasterRCNN) -> tuple[str, ...]:
    """Caffe and pytorch style have the same names and shapes, so only the metadata can tell them apart."""
    style = None
    if checkpoint.recipe is not None:
        style = ((checkpoint.recipe.get("model") or {}).get("backbone") or {}).get("style")
    else:
        said = set(re.findall(r"""\bstyle=['"](pytorch|caffe)['"]""", checkpoint.config_text))
        style = said.pop() if len(said) == 1 else None
    if style in (None, model.config.backbone.style):
        return ()
    return (
        f"these are weights of a {style}-style backbone and the model is {model.config.backbone.style} "
        "style: they load but detect nothing sensible; build the recipe of the file's style",
    )


def _initialise_heads(model: FasterRCNN) -> None:
    """As a new box head starts: normal with 0.01 for classes and 0.001 for boxes, biases zero."""
    head = model.roi_head.bbox_head
    nn.init.normal_(head.fc_cls.weight, std=0.01)
    nn.init.normal_(head.fc_reg.weight, std=0.001)
    with torch.no_grad():
        head.fc_cls.bias.zero_()
        head.fc_reg.bias.zero_()


def _rows(tensors: Mapping[str, Any], suffix: str) -> int | None:
    return next((value.shape[0] for name, value in tensors.items() if name.endswith(suffix)), None)


def _classes(count: int, names: tuple[str, ...]) -> str:
    return f"{count} classes" + (f" ({_some(list(names), 3)})" if names else "")


def _some(names: list[str], most: int = _NAMES_SHOWN) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
