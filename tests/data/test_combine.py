"""Several data sets as one, and map-style ones."""

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from tiny_coco import read_content, write_content, write_tiny

from frcnn.data import DatasetError, load_dataset
from frcnn.data.combine import concatenate, from_samples, load_datasets


@pytest.fixture
def two(tmp_path):
    """A second data set has the classes in another order, under other names of theirs, and one more."""
    first, second = write_tiny(tmp_path / "a", 4), write_tiny(tmp_path / "b", 5, seed=1)
    content = read_content(second[0])
    content["categories"] = [
        {"id": 1, "name": "square"}, {"id": 2, "name": "bar"}, {"id": 3, "name": "circle"},
    ]  # fmt: skip
    for entry in content["annotations"]:
        entry["category_id"] = {40: 1, 7: 2}[entry["category_id"]]
    content["annotations"][0]["category_id"] = 3
    content["annotations"][1]["image_id"] = -5  # of no image
    return first, (write_content(second[0].parent, content), second[1])


def classes_and_boxes(dataset, index):
    boxes, labels = dataset.boxes_of(index)
    return [(dataset.class_names[label], box.tolist()) for box, label in zip(boxes, labels, strict=True)]


def test_images_boxes_and_classes_are_those_of_the_parts(two):
    parts = [load_dataset(*each) for each in two]
    whole = concatenate(parts)
    assert len(whole) == 9 and whole.class_names == ("bar", "square", "circle")
    assert len(set(whole.image_ids.tolist())) == 9
    places = [(part, index) for part in parts for index in range(len(part))]
    for index, (part, own) in enumerate(places):
        assert classes_and_boxes(whole, index) == classes_and_boxes(part, own)
        assert whole.image_path(index) == part.image_path(own)
        assert whole.image_name(index) == str(part.image_path(own))
        assert np.array_equal(whole.read(index), part.read(own))
    assert "1 boxes of an unknown image id" in " ".join(whole.report.lines())
    assert {*whole.files()} == {file for part in parts for file in part.files()}
    assert "a/annotations.json" in whole.summary() and "b/annotations.json" in whole.summary()


def test_what_training_leaves_out_is_left_out_of_all(two):
    content = read_content(two[0][0])
    empty = content["images"][1]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != empty]
    write_content(two[0][0].parent, content)
    parts = [load_dataset(*each) for each in two]
    kept = concatenate(parts).for_training()
    wanted = [
        path
        for part in parts
        for path in map(part.for_training().image_path, range(len(part.for_training())))
    ]
    assert [kept.image_path(index) for index in range(len(kept))] == wanted and len(kept) == 8
    for index in range(len(kept)):
        assert np.array_equal(kept.read(index), cv2.imread(str(kept.image_path(index))))


def test_a_concatenation_of_concatenations(two):
    whole = load_datasets([two[0][0], two[1][0]], [two[0][1], two[1][1]])
    twice = concatenate([whole, whole.for_training()])
    for index in range(len(whole)):
        assert np.array_equal(twice.read(len(whole) + index), whole.read(index))


def test_folders_for_each_or_one_for_all(two):
    (file, folder), (other, _) = two
    assert len(load_datasets([file, file], [folder])) == 8
    with pytest.raises(DatasetError, match="3 folders of images for 2 annotation files: give one for each"):
        load_datasets([file, other], [folder] * 3)
    with pytest.raises(DatasetError, match="no data set"):
        concatenate([])


IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
BOXES = [[1.0, 2.0, 31.0, 22.0], [5.0, 5.0, 45.0, 35.0]]


@pytest.mark.parametrize("kind", ["array", "tensor", "rgb", "pillow", "dictionary"])
def test_items_of_every_kind(kind):
    image, boxes, labels, rgb = IMAGE, np.array(BOXES), np.array([1, 0]), False
    if kind == "tensor":
        image, boxes, labels = (
            torch.from_numpy(IMAGE).permute(2, 0, 1),
            torch.tensor(BOXES),
            torch.tensor([1, 0]),
        )
    elif kind == "rgb":
        image, rgb = IMAGE[..., ::-1], True
    elif kind == "pillow":
        image = PIL.Image.fromarray(np.ascontiguousarray(IMAGE[..., ::-1]))
    item = (image, {"boxes": boxes, "labels": labels}) if kind == "dictionary" else (image, boxes, labels)
    dataset = from_samples([item, (image, [], [])], ["cat", "dog"], rgb)
    assert np.array_equal(dataset.read(0), IMAGE) and dataset.class_names == ("cat", "dog")
    assert (dataset.widths.tolist(), dataset.heights.tolist()) == ([50, 50], [40, 40])
    assert dataset.boxes_of(0)[0].tolist() == BOXES and dataset.boxes_of(0)[1].tolist() == [1, 0]
    assert len(dataset.boxes_of(1)[0]) == 0 and len(dataset.for_training()) == 1
    assert list(dataset.files()) == [] and str(dataset.image_path(1)) == "samples[1]"


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (IMAGE, r"an item is \(image, boxes, labels\)"),
        ((IMAGE, BOXES), r"an item is \(image, boxes, labels\)"),
        ((IMAGE, {"boxes": BOXES}), r"an item is \(image, boxes, labels\)"),
        ((IMAGE, BOXES, [0]), r"boxes are \[G, 4\], labels \[G\]; got \[2, 4\] and \[1\]"),
        ((IMAGE, [[1, 2, 3]], [0]), r"got \[1, 3\] and \[1\]"),
        ((IMAGE, BOXES, [0, 2]), "label 2.0 is none of 2 classes"),
        ((IMAGE, BOXES, [0, 0.5]), "label 0.5 is none of 2 classes"),
        ((IMAGE[..., :2], BOXES, [0, 1]), "an image array is uint8"),
        (("nowhere.png", BOXES, [0, 1]), "nowhere.png"),
        ((IMAGE, [[1, 2], [3]], [0, 1]), "boxes are real numbers, one shape for all of them"),
        ((IMAGE, [[1j, 2, 3, 4]] * 2, [0, 1]), "boxes are real numbers"),
        ((IMAGE, BOXES, ["cat", "dog"]), "labels are real numbers"),
        ((IMAGE, [object()] * 2, [0, 1]), "boxes are real numbers"),
    ],
)
def test_an_item_that_is_none_is_named(item, said):
    with pytest.raises(DatasetError, match=rf"^samples\[1\]: .*{said}"):
        from_samples([(IMAGE, BOXES, [0, 1]), item], ["cat", "dog"])


def test_a_data_sets_own_error_names_the_item():
    class Failing(list):
        def __getitem__(self, row):
            return super().__getitem__(row) if row == 0 else 1 / 0

    with pytest.raises(DatasetError, match=r"^samples\[1\]: ZeroDivisionError: division by zero"):
        from_samples(Failing([(IMAGE, BOXES, [0, 1])] * 2), ["cat", "dog"])


def test_tensors_with_a_gradient_are_read():
    boxes = torch.tensor(BOXES, requires_grad=True)
    assert from_samples([(IMAGE, boxes, [0, 1])], ["cat", "dog"]).boxes_of(0)[0].tolist() == BOXES


def test_a_box_that_is_no_number_is_named():
    bad = [[float("nan"), 0, 1, 1]]
    with pytest.raises(DatasetError, match="bbox"):
        from_samples([(IMAGE, bad, [0])], ["cat"])
