"""ImageNet weights that a backbone starts training from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from frcnn.config import BackboneConfig

if TYPE_CHECKING:
    from frcnn.detector import FasterRCNN


@dataclass(frozen=True)
class BackboneWeights:
    """A published initialization: its addresses and what it is."""

    addresses: tuple[str, ...]
    description: str


_OPENMMLAB = (
    "https://open-mmlab.s3.ap-northeast-2.amazonaws.com/pretrain/third_party/",
    "https://download.openmmlab.com/pretrain/third_party/",
)


def _torchvision(file: str, description: str) -> BackboneWeights:
    return BackboneWeights((f"https://download.pytorch.org/models/{file}",), description)


def _openmmlab(file: str, description: str) -> BackboneWeights:
    return BackboneWeights(tuple(store + file for store in _OPENMMLAB), description)


BACKBONE_WEIGHTS: dict[str, BackboneWeights] = {
    "torchvision://resnet18": _torchvision("resnet18-f37072fd.pth", "torchvision's ResNet-18, RGB"),
    "torchvision://resnet34": _torchvision("resnet34-b627a593.pth", "torchvision's ResNet-34, RGB"),
    "torchvision://resnet50": _torchvision("resnet50-0676ba61.pth", "torchvision's ResNet-50, RGB"),
    "torchvision://resnet101": _torchvision("resnet101-63fe2227.pth", "torchvision's ResNet-101, RGB"),
    "torchvision://resnet152": _torchvision("resnet152-394f9c45.pth", "torchvision's ResNet-152, RGB"),
    "open-mmlab://detectron2/resnet50_caffe": _openmmlab(
        "resnet50_msra-5891d200.pth", "MSRA's ResNet-50 as detectron2 uses it: caffe style, BGR, std 1"
    ),
    "open-mmlab://detectron2/resnet101_caffe": _openmmlab(
        "resnet101_msra-6cc46731.pth", "MSRA's ResNet-101 as detectron2 uses it: caffe style, BGR, std 1"
    ),
    "open-mmlab://resnext101_32x4d": _openmmlab(
        "resnext101_32x4d-a5af3160.pth", "ResNeXt-101 32x4d, pytorch style, RGB"
    ),
    "open-mmlab://resnext101_64x4d": _openmmlab(
        "resnext101_64x4d-ee2c6f71.pth", "ResNeXt-101 64x4d, pytorch style, RGB"
    ),
}
"""What `BackboneConfig.pretrained` may name."""


def load_backbone(model: FasterRCNN, source: str | Path | None = None, progress: bool = True) -> Path:
    """Fill the model's backbone with ImageNet weights; returns the file they came from.

    The file may be a classifier of torchvision or MMDetection's model store (its final layer is left
    out), or a whole detector's checkpoint, of which the backbone is taken. For images of other than three
    channels the first filters are spread over them (`frcnn.checkpoint.load.spread_channels`).

    Args:
        source: a path, a name in `BACKBONE_WEIGHTS`, or an http(s) address ending in -<8 hex digits>.pth;
            default: what the model's configuration names.

    Raises:
        ValueError: nothing is named.
        DownloadError: the file could not be downloaded.
        CheckpointError: the file is no such backbone; the message lists the differences.
    """
    from frcnn.checkpoint.load import (
        check_dense,
        check_numbers,
        compare,
        drop_wrapper_prefixes,
        read_checkpoint,
        spread_channels,
    )
    from frcnn.checkpoint.torch_file import CheckpointError, reading

    source = model.config.backbone.pretrained if source is None else source
    if source is None:
        raise ValueError("no initialization is named: set BackboneConfig.pretrained or pass source")
    path = find_backbone_file(source, progress)
    tensors = drop_wrapper_prefixes(read_checkpoint(path).tensors)
    if any(name.startswith("backbone.") for name in tensors):
        tensors = {
            name.removeprefix("backbone."): value
            for name, value in tensors.items()
            if name.startswith("backbone.")
        }
    tensors = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    wanted = model.backbone.state_dict()
    spread_channels(tensors, "conv1.weight", wanted)
    difference = compare(wanted, tensors)
    with reading(path):
        if difference:
            raise CheckpointError(f"not a backbone of this model\n{difference}")
        check_dense(tensors)
        check_numbers(tensors)
    model.backbone.load_state_dict({**wanted, **tensors})
    return path


def untrained_consequences(backbone: BackboneConfig) -> tuple[str, ...]:
    """What training without an initialization means for a backbone, if not all of it learns."""
    found = []
    if backbone.frozen_stages >= 0:
        found.append(
            f"the backbone starts from random numbers and its stem and first {backbone.frozen_stages} stages "
            "never learn: set BackboneConfig.frozen_stages=-1"
        )
    if backbone.norm_eval:
        found.append(
            "batch norms keep the statistics they start with (mean 0, variance 1) instead of the data's: set "
            "BackboneConfig.norm_eval=False"
        )
    if backbone.style == "caffe":
        found.append("a caffe-style backbone never learns its norms' scale and shift: use style='pytorch'")
    return tuple(found)


def find_backbone_file(source: str | Path, progress: bool = True) -> Path:
    """The local file of a path, a name in `BACKBONE_WEIGHTS` or an address, downloaded where needed."""
    from frcnn.checkpoint.download import download

    text = str(source)
    if text in BACKBONE_WEIGHTS:
        return download(BACKBONE_WEIGHTS[text].addresses, progress=progress)
    if text.startswith(("http://", "https://")):
        return download((text,), progress=progress)
    if "://" in text:
        raise ValueError(f"{text!r} is not known; known are {', '.join(BACKBONE_WEIGHTS)}")
    return Path(text)
