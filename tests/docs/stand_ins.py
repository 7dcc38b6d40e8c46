"""What the documentation's examples run with here: every recipe small, what they download made beforehand.

The recipes keep their names and the downloads their way, checksum included; a model is a few hundred
kilobytes, its images are some dozen pixels wide, and nothing leaves the machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

PUBLISHED = "published"
"""Folder, below the prepared one, of what the examples would download; TORCH_HOME names it."""


def install(prepared: str) -> None:
    """Put the small recipes in the place of the real ones; in every process, by sitecustomize.py."""
    from tiny_recipe import STAGE_CHANNELS, tiny_recipe

    import frcnn.backbone
    from frcnn.checkpoint.pretrained import BACKBONE_WEIGHTS, BackboneWeights
    from frcnn.zoo import recipes

    frcnn.backbone.STAGE_CHANNELS = STAGE_CHANNELS
    tiny = tiny_recipe()
    backbone = replace(tiny.model.backbone, pretrained="torchvision://resnet18")
    files = {path.name.partition("-")[0]: path.name for path in (Path(prepared) / PUBLISHED).rglob("*.pth")}
    for name, real in recipes._BY_NAME.items():
        published, model = real.published, tiny.model
        if published is not None:
            published = replace(published, checkpoint=f"v2.0/{files.get('detector', 'x-00000000.pth')}")
            model = replace(model, backbone=backbone)
        recipes._BY_NAME[name] = replace(tiny, name=name, published=published, model=model)
    address = f"https://example.invalid/{files.get('backbone', 'x-00000000.pth')}"
    BACKBONE_WEIGHTS["torchvision://resnet18"] = BackboneWeights((address,), "made by the test")


def prepare(folder: Path) -> None:
    """Write what the examples start from: a data set, an image, checkpoints; everything from fixed seeds."""
    import cv2
    import torch
    from numbered_clip import write_clip
    from tiny_coco import write_tiny

    import frcnn
    from frcnn.data.convert import convert
    from frcnn.zoo.coco import COCO_CLASSES
    from frcnn.zoo.table import log_path

    annotations, images = write_tiny(folder / "data", images=8)
    (folder / "annotations").mkdir()
    content = json.loads(annotations.read_text())
    of_split = {"train": content["images"][:-2], "val": content["images"][-2:]}
    for name, entries in of_split.items():
        ids = {entry["id"] for entry in entries}
        boxes = [entry for entry in content["annotations"] if entry["image_id"] in ids]
        text = json.dumps({**content, "images": entries, "annotations": boxes})
        (folder / "annotations" / f"{name}.json").write_text(text)
    shutil.move(images, folder / "images")
    shutil.copy(folder / "images" / "1.png", folder / "street.jpg")  # read by its content, not by its name
    cv2.imwrite(str(folder / "image.ppm"), cv2.imread(str(folder / "images" / "1.png")))
    shutil.copytree(folder / "images", folder / "coco" / "val2017")
    (folder / "coco" / "annotations").mkdir()
    categories = [{"id": 1 + index, "name": name} for index, name in enumerate(COCO_CLASSES)]
    boxes = [{**entry, "category_id": 1} for entry in content["annotations"]]
    text = json.dumps({**content, "categories": categories, "annotations": boxes})
    (folder / "coco" / "annotations" / "instances_val2017.json").write_text(text)
    shutil.rmtree(folder / "data")
    voc = folder / "VOC"
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    shutil.copytree(folder / "images", voc / "JPEGImages")
    for name in of_split:
        split = frcnn.load_dataset(folder / "annotations" / f"{name}.json", folder / "images")
        made, _ = convert(split, "voc", folder / "made")
        shutil.copytree(made, voc / "Annotations", dirs_exist_ok=True)
        names = [Path(split.image_name(index)).stem for index in range(len(split))]
        (voc / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(names) + "\n")
        shutil.rmtree(folder / "made")
    write_clip(folder / "clip.mp4")

    torch.manual_seed(0)
    frcnn.build("small_r18_fpn", class_names=("bar", "square")).save(folder / "mine.pth")
    detector = frcnn.build("faster_rcnn_r50_fpn_1x_coco", class_names=COCO_CLASSES)
    detector.save(folder / "detector.pth")
    weights = {name: value.clone() for name, value in detector.backbone.state_dict().items()}
    torch.save(weights, folder / "backbone.pth")
    theirs = {"meta": {"CLASSES": COCO_CLASSES}, "state_dict": detector.state_dict()}
    torch.save(theirs, folder / "mmdetection.pth")
    store = folder / PUBLISHED / "hub" / "checkpoints"
    store.mkdir(parents=True)
    lines = [{"mode": "train", "epoch": e, "iter": 50, "loss": 1 / e} for e in (1, 2)]
    published = log_path(frcnn.recipe("faster_rcnn_r50_fpn_1x_coco"))
    (store / Path(published).name).write_text("\n".join(map(json.dumps, lines)))
    for name in ("detector", "backbone"):
        content = (folder / f"{name}.pth").read_bytes()
        (store / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth").write_bytes(content)
        (folder / f"{name}.pth").unlink()
