"""No command writes over what it reads, whatever the user names."""

import json
import shutil

import pytest
from command import run
from tiny_coco import write_tiny

import frcnn
from frcnn.checkpoint.plain import to_plain
from frcnn.engine.evaluate import evaluate
from frcnn.zoo.build import build
from frcnn.zoo.recipes import recipe

SMALL = ["--data.size", "64", "48", "--data.train-short-sides", "48", "--epochs", "1", "--workers", "0"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Files as a user has them."""
    folder = tmp_path_factory.mktemp("here")
    write_tiny(folder / "data", images=4)
    model = build("small_r18_fpn", class_names=("bar", "square"))
    model.save(folder / "best.pth")
    shutil.copy(folder / "data" / "annotations.json", folder / "recipe.json")
    return folder


@pytest.fixture
def unchanged(here):
    """What was there before is there afterward, and nothing else."""
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    yield
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("output", ["best.pth", "recipe.json", "data/images/0.png", "data/../best.pth"])
def test_evaluation_keeps_its_files(output, here, unchanged, capsys):
    files = "--annotations", here / "recipe.json", "--images", here / "data" / "images"
    assert run("eval", here / "best.pth", *files, "--output", here / output, "--device", "cpu") == 1
    assert f"{here / output} would overwrite" in capsys.readouterr().err


def test_evaluation_keeps_the_files_of_other_formats(here, tmp_path, capsys):
    """The ones that are found in folders, without being named."""
    images = tmp_path / "images"
    shutil.copytree(here / "data" / "images", images)
    (tmp_path / "data.yaml").write_text("names: [bar, square]")
    box = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    voc = "".join(f"<object><name>{name}</name>{box}</object>" for name in ("bar", "square"))
    for name, text in (
        ("labels/0.txt", "0 0.5 0.5 0.5 0.5"),
        ("Annotations/0.xml", f"<annotation>{voc}</annotation>"),
        ("ImageSets/Main/val.txt", "0"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for annotations, output in (
        ("data.yaml", "labels/0.txt"),
        ("Annotations", "Annotations/0.xml"),
        ("ImageSets/Main/val.txt", "ImageSets/Main/val.txt"),
        ("ImageSets/Main/val.txt", "Annotations/0.xml"),
    ):
        given = "--annotations", tmp_path / annotations, "--images", images, "--output", tmp_path / output
        before = (tmp_path / output).read_text()
        assert run("eval", here / "best.pth", *given, "--device", "cpu") == 1
        assert f"{output}, which is read" in capsys.readouterr().err
        assert (tmp_path / output).read_text() == before


def test_evaluation_keeps_them_in_python_too(here, unchanged):
    for output in ("recipe.json", "data/images/3.png"):
        with pytest.raises(ValueError, match="which is read"):
            evaluate(
                frcnn.load(here / "best.pth"),
                here / "recipe.json",
                here / "data" / "images",
                output=here / output,
            )


def test_evaluation_keeps_all_of_an_exported_file(here, unchanged, tmp_path, capsys):
    files = "--annotations", here / "recipe.json", "--images", here / "data" / "images"
    for name in ("m.xml", "m.bin", "m.xml.certificate.json"):
        (tmp_path / name).write_text("a part of it")
        assert run("eval", tmp_path / "m.xml", *files, "--output", tmp_path / name) == 1
        assert f"{name}, which is read" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "a part of it"


def test_conversion_keeps_its_source(here, tmp_path, capsys):
    for name in ("o.pth", ".o.pth.tmp"):  # the latter is what is written first
        shutil.copy(here / "best.pth", tmp_path / name)
        before = (tmp_path / name).read_bytes()
        assert run("convert", tmp_path / name, tmp_path / "o.pth") == 1
        assert "which is read" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    "recipe, options",
    [
        ("small_r18_fpn", ["--weights", "best.pth", "--reinit-heads"]),
        ("small_r18_fpn", ["--train-annotations", "recipe.json"]),
        ("small_r18_fpn", ["--val-annotations", "recipe.json", "--val-images", "data/images"]),
    ],
)
def test_training_keeps_its_files(recipe, options, here, unchanged, monkeypatch, capsys):
    monkeypatch.chdir(here)
    data = ["--train-annotations", "data/annotations.json", "--train-images", "data/images"]
    assert run("train", recipe, *data, *options, *SMALL, "--work-dir", ".", "--device", "cpu") == 1
    assert "which is read: write to another place" in capsys.readouterr().err


def test_training_keeps_what_only_a_failure_would_overwrite(here, unchanged, tmp_path, capsys):
    """The report of a step that was not finite; and an image of such a name."""
    content = json.loads((here / "data" / "annotations.json").read_text())
    (tmp_path / "not_finite.json").write_text(json.dumps(content))
    given = "--train-images", here / "data" / "images", *SMALL, "--work-dir", tmp_path, "--device", "cpu"
    assert run("train", "small_r18_fpn", "--train-annotations", tmp_path / "not_finite.json", *given) == 1
    assert "not_finite.json, which is read" in capsys.readouterr().err
    shutil.copy(here / "data" / "images" / content["images"][0]["file_name"], tmp_path / "log.jsonl")
    content["images"], one = content["images"][:1], content["images"][0]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == one["id"]]
    one["file_name"] = "log.jsonl"
    (tmp_path / "a.json").write_text(json.dumps(content))
    given = "--train-images", tmp_path, *given[2:]
    assert run("train", "small_r18_fpn", "--train-annotations", tmp_path / "a.json", *given) == 1
    assert "log.jsonl, which is read" in capsys.readouterr().err


def test_what_has_a_runs_names_is_set_aside(here, unchanged, tmp_path):
    data = here / "data"
    given = "--train-annotations", data / "annotations.json", "--train-images", data / "images", *SMALL
    for name in ("recipe.json", "log.jsonl", "log.1.jsonl"):
        (tmp_path / name).write_text(f"my own {name}")
    assert run("train", "small_r18_fpn", *given, "--work-dir", tmp_path, "--device", "cpu") == 0
    kept = {"recipe.1.json": "recipe.json", "log.2.jsonl": "log.jsonl", "log.1.jsonl": "log.1.jsonl"}
    for name, before in kept.items():
        assert (tmp_path / name).read_text() == f"my own {before}"
    assert json.loads((tmp_path / "recipe.json").read_text())["name"] == "small_r18_fpn"


def test_training_keeps_its_recipe(here, tmp_path, monkeypatch, capsys):
    """But goes on with the one that the run itself has written."""
    files = here / "data" / "annotations.json", here / "data" / "images"
    arguments = "--train-annotations", files[0], "--train-images", files[1], *SMALL, "--device", "cpu"
    written = json.dumps(to_plain(recipe("small_r18_fpn")))
    for folder, options in ((tmp_path / "run", ["--work-dir", tmp_path / "run"]), (None, [])):
        folder = folder or tmp_path / "work_dirs" / "small_r18_fpn"
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(written)
        monkeypatch.chdir(tmp_path)
        assert run("train", folder / "recipe.json", *arguments, *options) == 1
        assert "recipe.json, which is read" in capsys.readouterr().err
        with pytest.raises(ValueError, match="which is read"):
            frcnn.train(str(folder / "recipe.json"), *files, work_dir=options[1] if options else None)
        assert (folder / "recipe.json").read_text() == written
        assert run("train", folder / "recipe.json", *arguments, *options, "--resume") == 1
        assert "nothing to resume" in capsys.readouterr().err


def test_the_best_weights_of_a_run_are_kept(here, unchanged, capsys):
    """Also where last.pth, which says that there is a run, is gone."""
    data = (
        "--train-annotations",
        here / "data" / "annotations.json",
        "--train-images",
        here / "data" / "images",
    )
    (here / "recipe.json").rename(here / "annotations.json")
    try:
        assert run("train", "small_r18_fpn", *data, *SMALL, "--work-dir", here, "--device", "cpu") == 1
        assert "best.pth exists, of a run whose last.pth is gone" in capsys.readouterr().err
    finally:
        (here / "annotations.json").rename(here / "recipe.json")
