"""What `frcnn detect` writes on request: COCO's results, YOLO's and VOC's files, crops."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from frcnn.data.convert import voc_xml, yolo_line

Format = Literal["coco", "yolo", "voc", "crops"]
FORMATS: tuple[Format, ...] = ("coco", "yolo", "voc", "crops")


def files_of(
    entry: dict, formats: Sequence[Format], crops: Sequence[np.ndarray] = ()
) -> dict[Path, bytes | np.ndarray]:
    """The files of an image below the output folder, with their text, or their pixels if `crops` are given.

    entry: of detections.jsonl; its "name", which no other image has, is also theirs: yolo/NAME.txt, a line
    "label cx cy width height score" for each detection, in fractions of the image's size; voc/NAME.xml, whose
    objects have a <score>; crops/CLASS/NAME.png-N.png of the N-th detection.
    """
    name, width, height = entry["name"], entry["width"], entry["height"]
    found = [(one, _xywh(one["box"])) for one in entry["detections"]]
    files: dict[Path, bytes | np.ndarray] = {}
    if "yolo" in formats:
        lines = [f"{yolo_line(d['label'], box, width, height)} {d['score']:.6g}\n" for d, box in found]
        files[Path("yolo", name).with_suffix(".txt")] = "".join(lines).encode()
    if "voc" in formats:
        objects = [({"name": d["name"], "score": d["score"]}, box) for d, box in found]
        text = voc_xml(Path(entry["image"]).name, width, height, objects)
        files[Path("voc", name).with_suffix(".xml")] = text.encode("utf-8", "replace")
    for index, (one, _) in enumerate(found if "crops" in formats else ()):
        folder = re.sub(r"[^\w -]", "_", one["name"])[:80].strip() or "_"  # a class may be called ../..
        files[Path("crops", folder, f"{name}-{index + 1}.png")] = crops[index] if crops else b""
    return files


def coco_results(entries: Iterable[dict]) -> str:
    """COCO's results of all images. Without an annotation file there are no ids: image_id is the entry's
    "image", category_id the label counted from 1. bbox is x, y, width, height in pixels."""
    found = [(entry["image"], one) for entry in entries for one in entry.get("detections", ())]
    results = [
        {"image_id": image, "category_id": d["label"] + 1, "bbox": _xywh(d["box"]), "score": d["score"]}
        for image, d in found
    ]
    return json.dumps(results) + "\n"


def _xywh(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
