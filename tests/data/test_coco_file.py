"""Reading and checking COCO annotation files."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_coco import read_content, write_content, write_tiny

from frcnn.data import DatasetError, load_dataset


@pytest.fixture
def tiny(tmp_path):
    return write_tiny(tmp_path)


def edited(tiny, edit):
    """The annotation file after `edit(content)`."""
    content = read_content(tiny[0])
    edit(content)
    return write_content(tiny[0].parent, content, "edited.json")


def test_classes_are_sorted_by_category_id(tiny):
    dataset = load_dataset(*tiny)
    assert dataset.class_names == ("bar", "square")
    assert dataset.category_ids == (7, 40)


def test_boxes_and_labels_of_every_image_match_the_file(tiny):
    dataset = load_dataset(*tiny)
    content = read_content(tiny[0])
    for index, image in enumerate(content["images"]):
        own = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        boxes, labels = dataset.boxes_of(index)
        expected = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in own)]
        np.testing.assert_array_equal(boxes, np.array(expected, dtype=np.float32))
        assert [dataset.category_ids[label] for label in labels] == [entry["category_id"] for entry in own]
        assert dataset.image_path(index).name == image["file_name"]
        assert dataset.image_ids[index] == image["id"]


def test_annotations_may_come_in_any_order(tiny):
    shuffled = edited(tiny, lambda content: content["annotations"].reverse())
    first, second = load_dataset(*tiny), load_dataset(shuffled, tiny[1])
    for index in range(len(first)):
        assert sorted(first.boxes_of(index)[0].tolist()) == sorted(second.boxes_of(index)[0].tolist())


def test_crowd_regions_are_not_trained_on(tiny):
    def edit(content):
        content["annotations"][0]["iscrowd"] = 1

    dataset = load_dataset(edited(tiny, edit), tiny[1])
    assert len(dataset.boxes_of(0)[0]) == 1
    assert dataset.crowd.tolist().count(True) == 1 and len(dataset.boxes) == 12
    assert dataset.box_counts().tolist() == [1, 2, 2, 2, 2, 2]


def test_fields_that_other_tools_leave_out_are_not_needed(tiny):
    def edit(content):
        for entry in content["annotations"]:
            del entry["area"], entry["iscrowd"], entry["id"]

    assert load_dataset(edited(tiny, edit), tiny[1]).box_counts().sum() == 12


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [3, 4, 0, 0]}, "less than one pixel wide or high"),
        ({"bbox": [3, 4, 20, 0.5]}, "less than one pixel wide or high"),
        ({"bbox": [70, 4, 10, 10]}, "outside their image"),
        ({"bbox": [-10, 4, 10, 10]}, "outside their image"),
        ({"area": 0}, "without area"),
        ({"image_id": 12345}, "unknown image id"),
        ({"category_id": 3}, "unknown category id"),
    ],
)
def test_an_unusable_box_is_left_out_and_reported(tiny, change, reason):
    dataset = load_dataset(edited(tiny, lambda content: content["annotations"][0].update(change)), tiny[1])
    assert dataset.box_counts().sum() == 11
    (line,) = dataset.report.lines()
    assert line.startswith("1 boxes") and reason in line and "annotation 0" in line
    assert line in dataset.summary()


def test_a_box_that_sticks_out_is_kept(tiny):
    def edit(content):
        content["annotations"][0]["bbox"] = [-5, 4, 20, 10]

    dataset = load_dataset(edited(tiny, edit), tiny[1])
    assert dataset.boxes_of(0)[0][0].tolist() == [-5, 4, 15, 14]


def test_training_drops_empty_and_small_images(tiny):
    def edit(content):
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 98]
        content["images"][4].update(width=20)
        for entry in content["annotations"][6:]:
            entry["bbox"] = [2, 3, 10, 12]

    dataset = load_dataset(edited(tiny, edit), tiny[1])
    kept = dataset.for_training(min_side=32)
    assert kept.image_ids.tolist() == [100, 99, 97, 95]
    assert [kept.image_path(i).name for i in range(4)] == ["0.png", "1.png", "3.png", "5.png"]
    for index, original in enumerate((0, 1, 3, 5)):
        np.testing.assert_array_equal(kept.boxes_of(index)[0], dataset.boxes_of(original)[0])
        np.testing.assert_array_equal(kept.boxes_of(index)[1], dataset.boxes_of(original)[1])
    assert kept.report.lines() == ["1 images without boxes: 2.png", "1 images with a side under 32 px: 4.png"]
    assert dataset.report.lines() == []
    kept = dataset.for_training(min_side=32, keep_empty=True)
    assert kept.image_ids.tolist() == [100, 99, 98, 97, 95] and kept.box_counts().tolist()[2] == 0
    assert kept.report.lines() == ["1 images with a side under 32 px: 4.png"]


def test_a_training_set_of_empty_images_is_an_error(tiny):
    def edit(content):
        for entry in content["annotations"]:
            entry["iscrowd"] = 1

    with pytest.raises(DatasetError, match=r"none of its 6 images can be trained on.*without boxes"):
        load_dataset(edited(tiny, edit), tiny[1]).for_training()


def test_missing_and_malformed_files_are_named(tiny, tmp_path):
    with pytest.raises(DatasetError, match=r"absent\.json: no such annotation file"):
        load_dataset(tmp_path / "absent.json", tiny[1])
    with pytest.raises(DatasetError, match=r"nowhere: no such image folder"):
        load_dataset(tiny[0], tmp_path / "nowhere")
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(DatasetError, match=r"broken\.json: not a JSON file"):
        load_dataset(broken, tiny[1])
    with pytest.raises(DatasetError, match="no list 'images'"):
        load_dataset(write_content(tmp_path, [1, 2]), tiny[1])


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_each_list_is_needed_and_must_not_be_empty(tiny, key):
    with pytest.raises(DatasetError, match=f"no list '{key}'"):
        load_dataset(edited(tiny, lambda content: content.pop(key)), tiny[1])
    with pytest.raises(DatasetError, match=f"list '{key}' is empty"):
        load_dataset(edited(tiny, lambda content: content[key].clear()), tiny[1])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["images"][1].pop("width"), r"images\[1\]: no 'width'"),
        (
            lambda c: c["images"][1].update(height=0),
            r"images\[1\]: 'height' must be a whole number from 1 to 16777216, got 0",
        ),
        (lambda c: c["images"][1].update(id="a"), r"images\[1\]: 'id' must be a whole number"),
        (lambda c: c["images"][1].update(id=100), r"images\[1\]: 'id' 100 is also that of images\[0\]"),
        (
            lambda c: c["categories"][0].update(id=7),
            r"categories\[1\]: 'id' 7 is also that of categories\[0\]",
        ),
        (
            lambda c: c["categories"][0].update(name="bar"),
            r"categories\[1\]: 'name' 'bar' is also that of categories\[0\]",
        ),
        (lambda c: c["annotations"][2].pop("bbox"), r"annotations\[2\]: no 'bbox'"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), r"annotations\[2\]: 'bbox' must be \[x, y,"),
        (
            lambda c: c["annotations"][2].update(bbox=[1, 2, "3", 4]),
            "four numbers from .*, got \\[1, 2, '3', 4\\]",
        ),
    ],
)
def test_malformed_entries_are_located(tiny, edit, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset(edited(tiny, edit), tiny[1])


def test_absent_images_are_counted_and_named(tiny):
    (tiny[1] / "3.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of the 6 images.*3\.png'; give the folder"):
        load_dataset(*tiny)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("image_id", "'image_id' matched none of the 'images': 6 ids referred to .*, 6 ids defined"),
        (
            "category_id",
            "'category_id' matched none of the 'categories': 2 ids referred to .*, 2 ids defined",
        ),
    ],
)
def test_references_that_match_nothing_show_both_sides(tiny, key, message):
    def edit(content):
        for entry in content["annotations"]:
            entry[key] += 1000

    with pytest.raises(DatasetError, match=message):
        load_dataset(edited(tiny, edit), tiny[1])


@pytest.mark.parametrize(("split", "annotation"), [("train", 2288), ("val", 3692)])
def test_the_degenerate_boxes_of_real_data_are_reported(split, annotation):
    folder = Path(__file__).parent / "cases" / "bccd"
    dataset = load_dataset(folder / f"instances_{split}.json", folder)
    assert dataset.class_names == ("RBC", "WBC", "Platelets")
    assert dataset.category_ids == (10, 20, 40)
    (line,) = dataset.report.lines()
    assert line.startswith("1 boxes less than one pixel") and f"annotation {annotation}" in line
    content = json.loads(dataset.annotation_file.read_text())
    assert dataset.box_counts().sum() == len(content["annotations"]) - 1
