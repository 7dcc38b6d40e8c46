"""Annotation files that are wrong in one place: refused by name, or read with the meaning that is stated.

Every file goes through training's reading (load_dataset) and through evaluation, which must agree.
"""

from __future__ import annotations

import copy
import gzip
import json
import re

import pytest
from tiny_coco import perfect

from frcnn.data import DatasetError, load_dataset
from frcnn.engine.evaluate import evaluate, score

NAN, INF = float("nan"), float("inf")
LONG = "x" * 10_000_000
TOO_LARGE = "@1e400"  # written without the quotes: a number that no float holds
HUGE = 10**30


def spoiled(valid, key, position, changes):
    content = copy.deepcopy(valid)
    content[key][position] |= changes
    return content


BAD_IDS = [None, True, "1", "", 1.5, [1], {}, NAN, INF, TOO_LARGE, 2**63, -(2**63) - 1, HUGE, 1e300, LONG]
BAD_SIDES = [None, True, "64", 0, -1, 0.5, NAN, INF, TOO_LARGE, 2**24 + 1, HUGE, []]
BAD_TEXTS = [None, 3, True, [], {}, "", "half \ud800", "x" * 4097, LONG]
BAD_FIELDS = {
    ("images", "id"): BAD_IDS,
    ("categories", "id"): BAD_IDS,
    ("annotations", "image_id"): BAD_IDS,
    ("annotations", "category_id"): BAD_IDS,
    ("images", "width"): BAD_SIDES,
    ("images", "height"): BAD_SIDES,
    ("categories", "name"): BAD_TEXTS,
    ("images", "file_name"): [
        *BAD_TEXTS,
        "/etc/passwd",
        "../images/1.png",
        "sub/../1.png",
        "..",
        "..\\1.png",
        "1.png\0",
    ],
    ("annotations", "bbox"): [
        None,
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        "1 2 3 4",
        {"x": 1, "y": 2, "w": 3, "h": 4},
        [1, 2, "3", 4],
        [1, 2, True, 4],
        [1, 2, [3], 4],
        [[1, 2, 3, 4]],
        7,
        LONG,
        [-1e39, 3, 2e39, 10],  # finite, but the sum of the two is no float32
        *[
            [value if at == bad else 10 for at in range(4)]
            for bad in range(4)
            for value in (None, NAN, INF, -INF, 1e39, TOO_LARGE, -1e300, 2**24 + 1, HUGE)
        ],
    ],
    ("annotations", "area"): [None, "9", "", True, NAN, INF, -INF, TOO_LARGE, -1, 1e15, HUGE, [], {}],
    ("annotations", "iscrowd"): [None, "0", "1", "", 2, -1, 0.5, NAN, INF, HUGE, [], {}],
}
FIELD_CASES = [
    pytest.param(key, field, value, id=f"{key}-{field}-{number}-{str(value)[:12]!r}")
    for (key, field), values in BAD_FIELDS.items()
    for number, value in enumerate(values)
]


def refusal(path, images):
    """The message with which training and evaluation, alike, refuse a file."""
    with pytest.raises(DatasetError) as training:
        load_dataset(path, images)
    with pytest.raises(DatasetError) as evaluation:
        evaluate(None, path, images)  # without a model: nothing may be computed before the refusal
    assert str(training.value) == str(evaluation.value)
    assert len(str(training.value)) < 1500
    return str(training.value)


@pytest.mark.parametrize(("key", "field", "value"), FIELD_CASES)
def test_a_bad_field_is_named(folder, valid, write, key, field, value):
    path = write(spoiled(valid, key, 1, {field: value}))
    message = refusal(path, folder / "images")
    assert message.startswith(f"{path}: {key}[1]: '{field}' must be ")


REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}


@pytest.mark.parametrize(("key", "field"), [(key, field) for key in REQUIRED for field in REQUIRED[key]])
def test_an_absent_field_is_named(folder, valid, write, key, field):
    content = copy.deepcopy(valid)
    del content[key][1][field]
    path = write(content)
    assert refusal(path, folder / "images") == f"{path}: {key}[1]: no '{field}'"


@pytest.mark.parametrize("value", [None, 3, "text", [], True])
@pytest.mark.parametrize("key", list(REQUIRED))
def test_an_entry_that_is_no_object_is_named(folder, valid, write, key, value):
    content = copy.deepcopy(valid)
    content[key][1] = value
    path = write(content)
    assert refusal(path, folder / "images").startswith(f"{path}: {key}[1]: must be an object, got ")


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("images", "id", 100),
        ("images", "id", 100.0),
        ("categories", "id", 40),
        ("categories", "name", "square"),
    ],
)
def test_a_repeated_value_is_named(folder, valid, write, key, field, value):
    path = write(spoiled(valid, key, 1, {field: value}))
    assert re.match(
        rf"{re.escape(str(path))}: {key}\[1\]: '{field}' .* is also that of {key}\[0\]",
        refusal(path, folder / "images"),
    )


FILES = {
    "empty": (lambda data: b"", "not a JSON file"),
    "blank": (lambda data: b" \n", "not a JSON file"),
    "truncated": (lambda data: data[: len(data) // 2], "not a JSON file"),
    "last byte": (lambda data: data[:-1], "not a JSON file"),
    "two documents": (lambda data: data + data, "not a JSON file"),
    "JSON lines": (lambda data: b'{"id": 1}\n{"id": 2}\n', "not a JSON file"),
    "Python": (lambda data: b"{'images': []}", "not a JSON file"),
    "an image": (lambda data: b"\x89PNG\r\n\x1a\n" + bytes(100), "not a JSON file"),
    "NULs": (lambda data: bytes(100), "not a JSON file"),
    "no UTF-8": (lambda data: data.replace(b"square", b"squ\xffre"), "not a JSON file"),
    "cut UTF-8": (lambda data: data.replace(b"square", b"squ\xc3"), "not a JSON file"),
    "gzip": (gzip.compress, "compressed by gzip; unpack it"),
    "a long number": (
        lambda data: data.replace(b'"width": 48', b'"width": -' + b"9" * 5000),
        "images[0]: 'width' must be a whole number from 1 to 16777216, got a number of 5000 digits",
    ),
    "a long number, and no JSON": (lambda data: b"[" + b"9" * 5000, "not a JSON file"),
    "deep lists": (lambda data: b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "deep objects": (lambda data: b'{"a":' * 100_000, "nested too deeply"),
    "a deep field": (
        lambda data: data.replace(b'"id": 0', b'"id": ' + b"[" * 100_000 + b"]" * 100_000),
        "nested too deeply",
    ),
    "a list": (lambda data: b"[" + data + b"]", "no list 'images'"),
    "a text": (lambda data: b'"images"', "no list 'images'"),
    "a number": (lambda data: b"7", "no list 'images'"),
    "null": (lambda data: b"null", "no list 'images'"),
    "no images": (lambda data: data.replace(b'"images"', b'"frames"'), "no list 'images'"),
    "no annotations": (lambda data: data.replace(b'"annotations"', b'"boxes"'), "no list 'annotations'"),
    "images an object": (lambda data: json.dumps({**json.loads(data), "images": {}}).encode(), "no list 'im"),
    "annotations null": (
        lambda data: json.dumps({**json.loads(data), "annotations": None}).encode(),
        "no list 'annotations'",
    ),
    "categories a text": (
        lambda data: json.dumps({**json.loads(data), "categories": "all"}).encode(),
        "no list 'categories'",
    ),
    "no entries": (lambda data: json.dumps({**json.loads(data), "annotations": []}).encode(), "is empty"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_of_another_kind_is_refused(folder, write, name):
    spoil, reason = FILES[name]
    path = write(spoil((folder / "annotations.json").read_bytes()))
    message = refusal(path, folder / "images")
    assert message.startswith(f"{path}: ") and reason in message


def test_what_is_no_file_is_refused(folder):
    images = folder / "images"
    assert refusal(folder / "absent.json", images).endswith("absent.json: no such annotation file")
    assert refusal(images, images) == f"{images}: no .xml file in it"
    assert "cannot be read" in refusal(folder / "nul\0.json", images)


# What a changed annotations[1] means: how many of the 12 boxes training learns, how many it ignores, whether
# evaluation counts this one as an object, and what the report says.
LEARNED, CROWD, COUNTED, GONE = (12, 0, True), (11, 1, False), (11, 0, True), (11, 0, False)
MEANINGS = [
    *[({"iscrowd": value}, LEARNED, None) for value in (0, 0.0, False)],
    *[({"iscrowd": value}, CROWD, None) for value in (1, 1.0, True)],
    *[({"area": value}, LEARNED, None) for value in (0.5, 1, 1e9, 2**48)],
    ({"area": 0}, COUNTED, "without area"),
    ({"area": 0.0}, COUNTED, "without area"),
    *[({"bbox": [2, 3, *size]}, COUNTED, "less than one pixel") for size in ((0, 0), (20, 0.5), (-4, 9))],
    *[({"bbox": [*corner, 9, 9]}, COUNTED, "outside their image") for corner in ((70, 4), (-9, 4), (2, 99))],
    *[({"image_id": value}, GONE, "unknown image id") for value in (7, -1, 2**63 - 1, 1e15)],
    *[({"category_id": value}, GONE, "unknown category id") for value in (8, -1, 0, -(2**63))],
    *[({"id": value}, LEARNED, None) for value in (None, "a", [], 0, NAN, True, HUGE, LONG)],
    *[
        ({"segmentation": value}, LEARNED, None)
        for value in (None, "x", [[NAN]], {"counts": 3}, [[[[]]]], 1e39)
    ],
    ({"score": "high", "ignore": 1, "": {}}, LEARNED, None),
]


@pytest.mark.parametrize(("changes", "meaning", "reason"), MEANINGS)
def test_a_legal_annotation_has_its_stated_meaning(folder, valid, write, changes, meaning, reason):
    dataset = load_dataset(write(spoiled(valid, "annotations", 1, changes)), folder / "images")
    learned, ignored, counted = meaning
    assert dataset.box_counts().sum() == learned
    assert (dataset.trainable & dataset.crowd).sum() == ignored
    assert [reason in line for line in dataset.report.lines()] == ([True] if reason else [])
    assert dataset.boxes.sum() < 1e6  # the training fingerprint's sum stays a number
    # every box that training learns is found: the recall is whole unless evaluation counts another
    found = score(dataset, perfect(dataset)).metrics["bbox_AR_100"]
    assert found == pytest.approx(1.0) if learned == 12 or not counted else 0.8 < found < 1.0


def test_a_crowd_region_is_a_crowd_in_training_and_in_evaluation(folder, valid, write):
    # "0" was a crowd in training and none in evaluation; what counts as a crowd now absorbs detections
    dataset = load_dataset(write(spoiled(valid, "annotations", 0, {"iscrowd": True})), folder / "images")
    (region,) = dataset.xywh[dataset.crowd].tolist()
    stray = {"image_id": 100, "category_id": valid["annotations"][0]["category_id"], "score": 0.99}
    inside = {**stray, "bbox": region}
    assert score(dataset, [inside, *perfect(dataset)]).metrics["bbox_mAP"] == pytest.approx(1.0)
    outside = {**stray, "bbox": [0, 0, 2, 2]}
    assert score(dataset, [outside, *perfect(dataset)]).metrics["bbox_mAP"] < 0.99


@pytest.mark.parametrize("area", [500.0, 5000.0, 50_000.0])
def test_sizes_in_evaluation_follow_the_area_of_the_file(folder, valid, write, area):
    content = copy.deepcopy(valid)
    for entry in content["annotations"]:
        entry["area"] = area
    dataset = load_dataset(write(content), folder / "images")
    metrics = score(dataset, perfect(dataset)).metrics
    sizes = [metrics[f"bbox_AR_{size}"] for size in "sml"]
    assert [size > -1 for size in sizes] == [area == 500, area == 5000, area == 50_000]


@pytest.mark.parametrize("image_id", [0, -5, 2**53 + 1, 2**63 - 1, -(2**63), 3.0])
def test_any_whole_number_is_an_id(folder, valid, write, image_id):
    content = copy.deepcopy(valid)
    for entry in content["annotations"][:2]:
        entry["image_id"] = image_id
    content["images"][0]["id"] = image_id
    for entry in content["annotations"]:
        entry["category_id"] = image_id if entry["category_id"] == 7 else 40
    content["categories"][1]["id"] = image_id
    dataset = load_dataset(write(content), folder / "images")
    assert int(dataset.image_ids[0]) == image_id and image_id in dataset.category_ids
    assert score(dataset, perfect(dataset)).metrics["bbox_mAP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-32"),
        lambda text: text.replace('"images"', '"images": 3, "images"').encode(),
        lambda text: text.replace('"images"', f'"info": "{LONG}", "x": [[{{"y": NaN}}]], "images"').encode(),
    ],
)
def test_encodings_and_other_content_do_not_matter(folder, write, encode):
    text = (folder / "annotations.json").read_text()
    assert load_dataset(write(encode(text)), folder / "images").box_counts().sum() == 12


def test_an_image_may_lie_in_a_sub_folder(folder, valid, write):
    path = write(spoiled(valid, "images", 0, {"file_name": "sub/é 1.png"}))
    assert load_dataset(path, folder / "images").image_path(0) == folder / "images" / "sub" / "é 1.png"
