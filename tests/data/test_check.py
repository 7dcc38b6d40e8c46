"""`frcnn data check` finds each fault that is planted, and nothing in a sound data set."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from command import run
from tiny_coco import read_content, write_content, write_tiny

import frcnn_ops
from frcnn.config import DataConfig, ModelConfig, Recipe, RPNConfig
from frcnn.data import load_dataset
from frcnn.data.anchor_fit import best_ious, better
from frcnn.data.check import check


def command(capsys, *words):
    """Exit code, standard output and standard error."""
    code = run(*words)
    return code, *capsys.readouterr()


@pytest.fixture
def data(tmp_path):
    """12 images of two classes with 24 boxes, and a recipe whose anchors fit them."""
    return write_tiny(tmp_path / "data", images=12)


def sound_recipe():
    rpn = RPNConfig(scales=(2.0, 3.0, 5.0), ratios=(0.33, 1.0, 3.0))
    return Recipe("sound", ModelConfig(rpn=rpn), DataConfig(size=(128, 96), train_short_sides=(96,)))


def found_in(data, others=(), recipe=None):
    result = check(load_dataset(*data), recipe or sound_recipe(), others, progress=False)
    return {finding.name: finding for finding in result.findings}


def spoiled(data, change):
    content = read_content(data[0])
    change(content)
    write_content(data[0].parent, content)


def test_nothing_is_wrong_with_a_sound_data_set(data):
    found = found_in(data)
    assert set(found) == {"sides"} and found["sides"].level == "note" and found["sides"].count == 24


def box(number, values):
    def change(content):
        content["annotations"][number]["bbox"] = values

    return change


def another(number, **fields):
    def change(content):
        content["annotations"].append({**content["annotations"][number], **fields})

    return change


def without_boxes(content):
    content["annotations"] = content["annotations"][2:]


@pytest.mark.parametrize(
    ("name", "level", "change"),
    [
        ("inverted", "error", box(0, [30, 20, -8, 9])),
        ("outside", "error", box(0, [500, 2, 10, 10])),
        ("degenerate", "warning", box(0, [5, 5, 0.5, 9])),
        ("beyond", "warning", box(0, [-5, 5, 25, 20])),
        ("double", "warning", another(0)),
        ("two classes", "warning", another(0, category_id=40)),
        ("crowd", "note", another(0, iscrowd=1, bbox=[0, 0, 40, 40])),
        ("unused", "warning", lambda content: content["categories"].append({"id": 99, "name": "ghost"})),
        ("boxes of an unknown image id", "error", another(0, image_id=12345)),
        ("boxes of an unknown category id", "error", another(0, category_id=12345)),
        ("empty", "note", without_boxes),
        ("anchors", "warning", box(0, [2, 10, 44, 1.5])),
    ],
)
def test_a_planted_fault_of_annotations_is_found(data, name, level, change):
    if name == "two classes":
        spoiled(data, lambda content: content["annotations"][0].update(category_id=7))
    spoiled(data, change)
    found = found_in(data)
    assert name in found, set(found)
    assert found[name].level == level and found[name].count == 1
    allowed = {name, "sides", "rare", "tiny"} | ({"anchors"} if name in ("beyond", "degenerate") else set())
    assert set(found) <= allowed
    if name in ("inverted", "outside", "degenerate", "beyond", "double", "two classes", "anchors"):
        (example,) = found[name].examples
        assert example.image.endswith("0.png") and len(example.boxes) == 1 + (
            name in ("double", "two classes")
        )


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-200])


def other_size(path):
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))


def turned(path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    PIL.Image.open(path).save(path, exif=exif)


def deep(path):
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 257
    cv2.imwrite(str(path), pixels)


def flat(path):
    pixels = cv2.imread(str(path))
    pixels[-20:] = (120, 128, 121)
    cv2.imwrite(str(path), pixels)


@pytest.mark.parametrize(
    ("name", "level", "spoil"),
    [
        ("unreadable", "error", cut_short),
        ("size", "error", other_size),
        ("exif", "warning", turned),
        ("converted", "note", deep),
        ("flat", "warning", flat),
        ("duplicates", "warning", lambda path: path.write_bytes((path.parent / "6.png").read_bytes())),
    ],
)
def test_a_planted_fault_of_an_image_is_found(data, name, level, spoil):
    spoil(data[1] / "3.png")
    found = found_in(data)
    assert set(found) == {name, "sides"} and found[name].level == level and found[name].count == 1
    assert found[name].examples[0].image.endswith(("3.png", "6.png"))


def test_an_image_in_two_splits_is_an_error(data, tmp_path):
    other = write_tiny(tmp_path / "other", images=3, seed=1)
    assert set(found_in(data, [load_dataset(*other)])) == {"sides"}
    (other[1] / "1.png").write_bytes((data[1] / "4.png").read_bytes())
    (leak,) = (f for f in found_in(data, [load_dataset(*other)]).values() if f.level == "error")
    assert leak.count == 1 and leak.examples[0].image == str(data[1] / "4.png")
    assert str(other[1] / "1.png") in leak.examples[0].text


def test_what_a_recipe_leaves_out_is_found(data):
    recipe = replace(sound_recipe(), data=replace(sound_recipe().data, min_image_side=49))
    found = found_in(data, recipe=recipe)
    assert set(found) == {"nothing to train on"}  # every image has a side of 48
    spoiled(data, lambda content: content["images"].pop())
    small = replace(sound_recipe(), data=replace(sound_recipe().data, size=(16, 12), train_short_sides=(12,)))
    tiny = found_in(data, recipe=small)["tiny"]
    values = [float(example.text.split(", ")[-1].split()[0]) for example in tiny.examples]
    assert values == sorted(values) and all(value < 4 for value in values)


def test_the_best_anchor_is_that_of_all():
    """Against every anchor that the network has."""
    generator = np.random.default_rng(0)
    model = ModelConfig(rpn=RPNConfig(scales=(2.0, 8.0), ratios=(0.5, 1.0, 3.0)))
    height, width = 96, 160
    corner = generator.uniform(-5, 120, (200, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(1, 150, (200, 2))], 1).astype(np.float32)
    shapes = [(-(-height // int(s)), -(-width // int(s))) for s in model.strides]
    anchors = torch.cat(
        frcnn_ops.grid_anchors(shapes, [float(s) for s in model.strides], model.rpn.scales, model.rpn.ratios)
    )
    wanted = frcnn_ops.box_iou(torch.from_numpy(boxes), anchors).max(1).values.numpy()
    found = best_ious(boxes, np.array([[height, width]] * 200), model)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_anchors_that_would_fit_are_named():
    """Long thin boxes, which no anchor of the default ratios reaches."""
    places = np.array([[x, y, x + 160.0, y + 16.0] for x, y in product(range(0, 300, 50), repeat=2)])
    sizes = np.array([[512, 512]] * len(places))
    assert (best_ious(places, sizes, ModelConfig()) < 0.3).all()
    scales, ratios, left = better(places, sizes, ModelConfig())
    assert left == 0 and min(ratios) < 0.5 and {0.5, 1.0, 2.0} < set(ratios)
    rpn = RPNConfig(scales=tuple(scales), ratios=tuple(ratios))
    assert (best_ious(places, sizes, ModelConfig(rpn=rpn)) >= 0.3).all()


class _Images(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]


def test_the_command_writes_text_json_and_a_page_and_fails_for_errors(data, tmp_path, capsys):
    pytest.importorskip("jinja2")
    words = ["data", "check", *data, "--recipe", "small_r18_fpn"]
    files = ["--json-file", str(tmp_path / "found.json"), "--html", str(tmp_path / "found.html")]
    code, output, error = command(capsys, *words, *files)
    assert code == 0, error
    assert "no errors" in output and json.loads((tmp_path / "found.json").read_text())["errors"] == 0
    spoiled(data, box(0, [500, 2, 10, 10]))
    cut_short(data[1] / "3.png")
    spoiled(data, lambda content: content["categories"].append({"id": 99, "name": "<script>"}))
    code, output, error = command(capsys, *words, *files)
    assert code == 1 and not error
    assert "boxes outside their image" in output and "2 errors" in output
    listed = json.loads((tmp_path / "found.json").read_text())
    found = {finding["name"]: finding for finding in listed["findings"]}
    assert listed["errors"] == 2 and found["outside"]["examples"][0]["boxes"] == [[500, 2, 510, 12]]
    page = (tmp_path / "found.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "2 errors" in page
    images = _Images()
    images.feed(page)
    assert images.addresses and all(address.startswith("data:image/jpeg;") for address in images.addresses)
    for example in (found["outside"], found["unreadable"]):
        assert example["examples"][0]["image"] in page


def test_the_command_never_writes_over_what_it_reads(data, capsys):
    before = data[0].read_bytes()
    code, _, error = command(capsys, "data", "check", *data, "--json-file", data[0])
    assert code == 1 and "annotations.json" in error and data[0].read_bytes() == before


def test_folders_of_other_splits_are_all_named_or_none(data, capsys):
    words = ["data", "check", *data, "--other-annotations", str(data[0]), str(data[0])]
    code, _, error = command(capsys, *words, "--other-images", data[1])
    assert code == 2 and "--other-images names 1 folders for the 2 files of --other-annotations" in error
