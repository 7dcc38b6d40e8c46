"""Pascal VOC and YOLO data sets give what COCO's does, and every fault in them is named."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import PIL.Image
import pytest
from command import run
from tiny_coco import read_content, write_tiny

from frcnn.data import DatasetError, load_dataset


def write_voc(coco: Path, folder: Path) -> Path:
    """The same data set as VOC's XML files."""
    content = read_content(coco)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for image in content["images"]:
        objects = ""
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = entry["bbox"]
                objects += (
                    f"<object><name>{escape(names[entry['category_id']])}</name>"
                    f"<difficult>{entry['iscrowd']}</difficult><bndbox><xmin>{x + 1}</xmin>"
                    f"<ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>"
                )
        (folder / "Annotations" / f"{Path(image['file_name']).stem}.xml").write_text(
            f"<annotation><filename>{image['file_name']}</filename><size><width>{image['width']}</width>"
            f"<height>{image['height']}</height><depth>3</depth></size>{objects}</annotation>"
        )
    stems = [Path(image["file_name"]).stem for image in content["images"]]
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n".join(stems) + "\n")
    return folder / "Annotations"


def write_yolo(coco: Path, images: Path) -> Path:
    """The same as YOLO's text files, in labels/ beside images/."""
    content = read_content(coco)
    ids = sorted(entry["id"] for entry in content["categories"])
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    labels = images.parent / "labels"
    labels.mkdir()
    for image in content["images"]:
        lines = []
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = entry["bbox"]
                box = (x + width / 2) / image["width"], (y + height / 2) / image["height"]
                box = (*box, width / image["width"], height / image["height"])
                lines.append(" ".join(map(repr, (ids.index(entry["category_id"]), *box))))
        (labels / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines) + "\n")
    description = images.parent / "data.yaml"
    description.write_text(json.dumps({"train": "images", "names": [names[number] for number in ids]}))
    return description


@pytest.fixture
def coco(tmp_path):
    return write_tiny(tmp_path / "data")


def contents(dataset):
    """What a data set says, whatever its order."""
    return {
        dataset.image_path(index).name: (
            int(dataset.widths[index]),
            int(dataset.heights[index]),
            sorted(
                (dataset.class_names[label], crowd, *np.round(box, 6).tolist())
                for label, crowd, box in zip(
                    dataset.labels[rows], dataset.crowd[rows].tolist(), dataset.xywh[rows], strict=True
                )
            ),
        )
        for index in range(len(dataset))
        for rows in [slice(dataset.box_offsets[index], dataset.box_offsets[index + 1])]
    }


def test_the_three_formats_agree(coco, tmp_path):
    content = read_content(coco[0])
    content["annotations"][3]["iscrowd"] = 1
    coco[0].write_text(json.dumps(content))
    wanted = contents(load_dataset(*coco))
    annotations = write_voc(coco[0], tmp_path / "voc")
    assert contents(load_dataset(annotations, coco[1])) == wanted
    assert contents(load_dataset(tmp_path / "voc" / "ImageSets" / "Main" / "train.txt", coco[1])) == wanted
    yolo = contents(load_dataset(write_yolo(coco[0], coco[1]), coco[1]))
    without_crowd = {
        name: (width, height, sorted((label, False, *box) for label, _, *box in boxes))
        for name, (width, height, boxes) in wanted.items()
    }
    assert yolo == without_crowd


VOC = "<annotation><filename>0.png</filename>{size}{objects}</annotation>"
BOX = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
OBJECT = f"<object><name>bird</name>{BOX}</object>"


@pytest.fixture
def images(tmp_path):
    """0.png, of 64x48 pixels, and sub/1.jpg, which is turned upright to 48x64."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    PIL.Image.new("RGB", (64, 48)).save(folder / "0.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (64, 48)).save(folder / "sub" / "1.jpg", exif=exif)
    return folder


def voc(tmp_path, text, name="0.xml"):
    folder = tmp_path / "Annotations"
    folder.mkdir(exist_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_an_image_is_the_one_that_is_there(tmp_path, images):
    """Whatever folder <filename> speaks of, and where it is wrong by its own name; its size is looked up."""
    voc(tmp_path, VOC.format(size="", objects=OBJECT).replace("0.png", "old/0.png"))
    folder = voc(tmp_path, VOC.format(size="", objects=OBJECT).replace("0.png", "gone.bmp"), "sub/1.xml")
    dataset = load_dataset(folder, images)
    assert [dataset.image_path(index) for index in range(2)] == [images / "0.png", images / "sub" / "1.jpg"]
    assert (dataset.widths.tolist(), dataset.heights.tolist()) == ([64, 48], [48, 64])
    assert dataset.xywh.tolist() == [[4, 5, 16, 25]] * 2


def test_no_image_is_taken_twice_or_by_chance(tmp_path, images):
    voc(tmp_path, VOC.format(size="", objects=OBJECT))
    folder = voc(tmp_path, VOC.format(size="", objects=OBJECT), "other.xml")
    with pytest.raises(DatasetError, match=r"other\.xml: it and .*0\.xml are both of the image 0\.png"):
        load_dataset(folder, images)
    (folder / "other.xml").write_text(VOC.format(size="", objects=OBJECT).replace("0.png", "1.jpg"))
    dataset = load_dataset(folder, images)  # the only 1.jpg, in whatever folder
    assert dataset.image_path(1) == images / "sub" / "1.jpg"
    PIL.Image.new("RGB", (64, 48)).save(images / "0.jpg")
    (folder / "0.xml").write_text(VOC.format(size="", objects=OBJECT).replace("0.png", "gone.png"))
    with pytest.raises(DatasetError, match=r"0\.xml: 'gone\.png' may be any of 0\.jpg, 0\.png"):
        load_dataset(folder, images)
    assert len(yolo(tmp_path, images, "0 0.5 0.5 0.5 0.5")) == 3  # both images have the labels of 0.txt


def test_classes_can_be_given(tmp_path, images):
    """So that a folder without an example of a class has the others' numbers."""
    folder = voc(tmp_path, VOC.format(size="", objects=OBJECT))
    (folder / "classes.txt").write_text("zebra\nbird\n")
    dataset = load_dataset(folder, images)
    assert dataset.class_names == ("zebra", "bird") and dataset.labels.tolist() == [1]
    (folder / "classes.txt").write_text("zebra\n")
    with pytest.raises(DatasetError, match=r"0\.xml: object 1: 'bird' is not in classes\.txt"):
        load_dataset(folder, images)


@pytest.mark.parametrize(
    "text, message",
    [
        ("<annotation>", "not an XML file"),
        ("<html/>", "not of VOC: its root is <'html'>"),
        ('<!DOCTYPE x [<!ENTITY a "aa">]><annotation>&a;</annotation>', "has a document type"),
        ("<annotation><object><bndbox/></object></annotation>", "object 1: no <name>"),
        (VOC.format(size="", objects="<object><name>a</name></object>"), "<bndbox> <xmin> is missing"),
        (VOC.format(size="", objects=OBJECT.replace(">5<", ">five<")), "<xmin> is 'five', expected a number"),
        (
            VOC.format(size="", objects=OBJECT.replace(">5<", ">nan<")),
            r"\('0.xml, object 1'\): 'bbox' must be",
        ),
        (VOC.format(size="<size><width>x</width></size>", objects=OBJECT), "<size> <width> is 'x'"),
        (
            VOC.format(size="", objects=OBJECT).replace("0.png", "9.png"),
            "neither '9.png' nor an image called",
        ),
    ],
)
def test_a_fault_of_voc_is_named(text, message, tmp_path, images):
    name = "7.xml" if "9.png" in text else "0.xml"
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(voc(tmp_path, text, name), images)
    assert name in str(caught.value)


def test_image_sets(tmp_path, images):
    with pytest.raises(DatasetError, match=r"absent\.txt: no such annotation file"):
        load_dataset(tmp_path / "absent.txt", images)
    folder = voc(tmp_path, VOC.format(size="", objects=OBJECT))
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "bird_train.txt").write_text("0  1\n")
    with pytest.raises(DatasetError, match="a set of one class"):
        load_dataset(sets / "bird_train.txt", images)
    (sets / "train.txt").write_text("0\nabsent\n")
    with pytest.raises(DatasetError, match=r"absent\.xml: cannot be read \(No such file"):
        load_dataset(sets / "train.txt", images)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"expected in .*Annotations, which is no folder"):
        load_dataset(sets / "train.txt", images)


def yolo(tmp_path, images, line, names="names: {0: bird, 1: fish}"):
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels" / "0.txt").write_text(line)
    (tmp_path / "data.yaml").write_text(names)
    return load_dataset(tmp_path / "data.yaml", images)


def test_lines_of_yolo(tmp_path, images):
    dataset = yolo(tmp_path, images, "1 0.5 0.5 0.25 0.5\n\n0 0.25 0.5 0.75 0.25 0.5 1\n")
    assert dataset.class_names == ("bird", "fish") and dataset.labels.tolist() == [1, 0]
    assert dataset.xywh.tolist() == [[24, 12, 16, 24], [16, 12, 32, 36]]  # the latter a polygon's
    assert len(dataset) == 2 and (dataset.widths[1], dataset.heights[1]) == (48, 64)  # without a text file
    assert len(dataset.for_training()) == 1


@pytest.mark.parametrize(
    "line, message",
    [
        ("0 0.5 0.5 0.25", "line 1: 4 numbers; expected a class and a box or a polygon"),
        ("0 0.5 0.5 0.25 0.5 0.1", "line 1: 6 numbers"),
        ("\n2 0.5 0.5 0.25 0.5", "line 2: class 2 is none of 0 to 1"),
        ("0.5 0.5 0.5 0.25 0.5", "class 0.5 is none"),
        ("bird 0.5 0.5 0.25 0.5", "is not numbers"),
        ("0 24 12 16 24", "expected fractions"),
        ("0 nan 0.5 0.25 0.5", "expected fractions"),
    ],
)
def test_a_fault_of_yolo_is_named(line, message, tmp_path, images):
    with pytest.raises(DatasetError, match=rf"0\.txt: .*{message}|0\.txt: {message}"):
        yolo(tmp_path, images, line)


@pytest.mark.parametrize(
    "names", ["nc: 2", "names: 3", "[", "names: {1: a}", "names: []", "!!python/object/apply:os.getcwd []"]
)
def test_a_description_without_names(names, tmp_path, images):
    with pytest.raises(DatasetError, match=r"data\.yaml: expected `names:`"):
        yolo(tmp_path, images, "0 0.5 0.5 0.5 0.5", names)


def test_a_damaged_image_is_named_before_training(tmp_path, images):
    (images / "2.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"2\.png is not an image that can be decoded"):
        yolo(tmp_path, images, "0 0.5 0.5 0.5 0.5")


def test_a_model_trains_on_voc_and_is_evaluated_on_coco(coco, tmp_path, capsys):
    annotations = write_voc(coco[0], tmp_path / "voc")
    small = ["--data.size", "64", "48", "--data.train-short-sides", "48", "--epochs", "1", "--workers", "0"]
    given = "--train-annotations", annotations, "--train-images", coco[1], "--work-dir", tmp_path / "run"
    assert run("train", "small_r18_fpn", *given, *small, "--device", "cpu") == 0
    scores = []
    for file in (coco[0], annotations, write_yolo(coco[0], coco[1])):
        capsys.readouterr()
        assert run("eval", tmp_path / "run" / "last.pth", "--annotations", file, "--images", coco[1]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1] == scores[2] and "bbox_mAP " in scores[0]
