"""Written in another format and read again, a data set is the same; sheets show what it holds."""

import cv2
import numpy as np
import pytest
from command import run
from test_formats import contents
from tiny_coco import read_content, write_content, write_tiny

from frcnn.data import DatasetError, load_dataset
from frcnn.data.combine import concatenate, from_samples
from frcnn.data.convert import convert
from frcnn.data.sheet import CELL, annotated, sheet


def command(capsys, *words):
    """Exit code, standard output and standard error."""
    code = run(*words)
    return code, *capsys.readouterr()


@pytest.fixture
def data(tmp_path):
    """With fractions, a crowd region, an image without boxes and one in a sub-folder."""
    annotations, images = write_tiny(tmp_path / "data")
    content = read_content(annotations)
    content["annotations"][0]["bbox"] = [1.25, 2.5, 20.125, 11.0]
    content["annotations"][1]["iscrowd"] = 1
    content["annotations"] = content["annotations"][:-2]
    content["images"][2]["file_name"] = "sub/2.png"
    (images / "sub").mkdir()
    (images / "2.png").rename(images / "sub" / "2.png")
    return write_content(annotations.parent, content), images


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_a_data_set_survives(data, tmp_path, format):
    before = load_dataset(*data)
    after = load_dataset(*convert(before, format, tmp_path / "out"))
    wanted = contents(before)
    if format == "yolo":  # which has no crowd regions
        wanted = {
            name: (width, height, [entry for entry in entries if not entry[1]])
            for name, (width, height, entries) in wanted.items()
        }
    assert contents(after) == wanted
    assert after.class_names == before.class_names


def test_a_folder_that_exists_is_left_alone(data, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"out exists.*choose a new folder"):
        convert(load_dataset(*data), "coco", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_what_was_made_of_other_data_sets_is_not_written(data, tmp_path, format):
    """Their images have paths outside the new folder."""
    before = sorted((path, path.read_bytes()) for path in data[1].rglob("*.png"))
    read = load_dataset(*data)
    for made in (
        concatenate([read, read]),
        from_samples([(np.zeros((9, 9, 3), np.uint8), [[1, 1, 8, 8]], [0])], ["a"]),
    ):
        with pytest.raises(DatasetError, match="has no folder of images of its own: convert each"):
            convert(made.for_training() if len(made) > 1 else made, format, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted((path, path.read_bytes()) for path in data[1].rglob("*.png")) == before


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_images_that_would_share_a_file_are_named(data, tmp_path, format):
    content = read_content(data[0])
    content["images"][0]["file_name"] = "1.jpg"
    (data[1] / "0.png").rename(data[1] / "1.jpg")
    write_content(data[0].parent, content)
    with pytest.raises(DatasetError, match=r"1\.jpg and 1\.png differ in their suffix only"):
        convert(load_dataset(*data), format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_wrote(data, tmp_path, capsys):
    code, output, error = command(
        capsys, "data", "convert", *data, "--to", "voc", "--output", str(tmp_path / "out")
    )
    assert code == 0, error
    assert f"annotations  {tmp_path / 'out' / 'Annotations'}" in output
    code, _, error = command(
        capsys, "data", "convert", *data, "--to", "xml", "--output", str(tmp_path / "new")
    )
    assert code == 2 and "--to xml: expected" in error and not (tmp_path / "new").exists()


def test_a_sheet_shows_images_with_their_boxes(data):
    dataset = load_dataset(*data)
    everything = sheet(dataset, count=100)
    assert (
        everything.dtype == np.uint8 and everything.shape[1] == 2 * (CELL + 4) + CELL
    )  # 6 images in 3 columns
    plain, drawn = cv2.imread(str(dataset.image_path(0))), annotated(dataset, 0)
    assert drawn.shape == plain.shape  # a small image is not enlarged
    x, y = 1, 13  # the left edge of the first box
    assert not np.array_equal(drawn[y, x], plain[y, x])
    only = sheet(dataset, count=1, class_name="bar")
    assert only.shape[1] == CELL
    with pytest.raises(DatasetError, match="no class 'ghost', but bar, square"):
        sheet(dataset, class_name="ghost")


def test_the_sheet_command(data, tmp_path, capsys):
    target = tmp_path / "sheet.png"
    code, output, error = command(capsys, "data", "show", *data, "--output", str(target), "--count", "4")
    assert code == 0 and output.strip() == str(target), error
    assert cv2.imread(str(target)).shape[1] == 2 * CELL + 4
    inside = data[1] / "0.png"
    before = inside.read_bytes()
    code, _, error = command(capsys, "data", "show", *data, "--output", str(inside))
    assert code == 1 and "0.png" in error and inside.read_bytes() == before
