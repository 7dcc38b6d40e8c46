"""`frcnn detect --formats`: the files say what detections.json says, by shards and after a stop too."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from quarter_finder import Model, Stopped, stop_at

from frcnn import cli, load_dataset
from frcnn.checked import OptionError
from frcnn.engine.detect import detect
from frcnn.engine.formats import FORMATS


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_format_says_what_the_entries_say(folder, out):
    image = cv2.imread(str(folder / "a.png"))
    image[:20, :30] = (1, 2, 3)  # what the detector finds
    cv2.imwrite(str(folder / "a.png"), image)
    result = detect(Model(), [folder], out, formats=FORMATS)
    entries = json.loads(result.detections.read_text())
    assert entries[0]["name"] == entries[0]["drawing"] == "a.png"

    assert (out / "yolo" / "a.txt").read_text() == "1 0.25 0.25 0.5 0.5 0.9\n"
    assert (out / "yolo" / "deep" / "b.txt").is_file()

    voc = load_dataset(out / "voc", folder)
    assert voc.class_names == ("b",) and len(voc) == 3
    assert voc.boxes_of(0)[0].tolist() == [entries[0]["detections"][0]["box"]]
    assert "<score>0.89" in (out / "voc" / "a.xml").read_text()

    truth = COCO()
    truth.dataset = {
        "images": [{"id": entry["image"]} for entry in entries],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [],
    }
    truth.createIndex()
    loaded = truth.loadRes(str(out / "coco" / "detections.json"))
    (found,) = loaded.loadAnns(loaded.getAnnIds(imgIds=[str(folder / "a.png")]))
    assert found["bbox"] == [0, 0, 30, 20] and found["category_id"] == 2 and found["score"] > 0.89

    crop = cv2.imread(str(out / "crops" / "b" / "a.png-1.png"))
    assert crop.shape == (20, 30, 3) and (crop == (1, 2, 3)).all()
    assert len(list((out / "crops").rglob("*.png"))) == 3


def test_nothing_found_is_an_empty_file(folder, out):
    detect(Model(), [folder / "a.png"], out, min_score=0.95, formats=FORMATS)
    assert (out / "yolo" / "a.txt").read_bytes() == b"" and not (out / "crops").exists()
    assert "<object>" not in (out / "voc" / "a.xml").read_text()
    assert json.loads((out / "coco" / "detections.json").read_text()) == []


@pytest.mark.parametrize("draw", [True, False])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_files(folder, out, tmp_path, at, draw):
    detect(Model(), [folder], tmp_path / "whole", draw=draw, formats=FORMATS)
    with pytest.raises(Stopped):
        detect(Model(before=stop_at(at)), [folder], out, draw=draw, formats=FORMATS)
    result = detect(Model(), [folder], out, draw=draw, formats=FORMATS, resume=True)
    assert result.resumed == at and contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("lost", ["yolo/a.txt", "voc/deep/b.xml", "crops/b/deep/a.png-1.png"])
def test_an_image_with_a_file_missing_is_done_again(folder, out, lost):
    detect(Model(), [folder], out, formats=FORMATS)
    before = contents(out)
    (out / lost).unlink()
    assert detect(Model(), [folder], out, formats=FORMATS, resume=True).resumed == 2
    assert contents(out).keys() == before.keys() and contents(out)[lost] == before[lost]


def test_shards_do_together_what_one_run_does(folder, out, tmp_path):
    detect(Model(), [folder], tmp_path / "whole", formats=FORMATS)
    for shard in ((2, 2), (1, 2)):
        detect(Model(), [folder], out, formats=FORMATS, shard=shard)
    whole, shards = contents(tmp_path / "whole"), contents(out)
    for name in whole:
        assert "detections.json" in name or shards[name] == whole[name]
    parts = [json.loads(shards[f"coco/detections-{k}-of-2.json"]) for k in (1, 2)]
    together = sorted([*parts[0], *parts[1]], key=lambda one: one["image_id"])
    assert together == json.loads(whole["coco/detections.json"])


@pytest.mark.parametrize("name", ["yolo/a.txt", "voc/deep/b.xml", "coco/detections.json"])
def test_no_existing_file_is_overwritten(folder, out, name):
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("somebody's")
    model = Model()
    with pytest.raises(ValueError, match="choose an output folder that is new"):
        detect(model, [folder], out, formats=FORMATS)
    assert model.seen == 0 and contents(out) == {name: b"somebody's"}


def test_a_file_where_a_formats_folder_would_be_is_named_before_work(folder, out):
    out.mkdir()
    (out / "yolo").write_text("somebody's")
    model = Model()
    with pytest.raises(NotADirectoryError, match=r"out/yolo: a file is there"):
        detect(model, [folder], out, formats=FORMATS)
    assert model.seen == 0 and contents(out) == {"yolo": b"somebody's"}


def test_no_crop_of_others_is_overwritten(folder, out):
    crop = out / "crops" / "b" / "deep" / "a.png-1.png"
    crop.parent.mkdir(parents=True)
    crop.write_text("somebody's")
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        detect(Model(), [folder], out, formats=["crops"])
    assert crop.read_text() == "somebody's"


def test_names_that_differ_in_their_suffix_only_get_files_of_their_own(folder, out):
    cv2.imwrite(str(folder / "a.jpg"), np.zeros((9, 9, 3), np.uint8))
    detect(Model(), [folder], out, formats=["yolo"])
    assert (out / "a_2.png").is_file() and (out / "a.jpg").is_file()
    assert {p.name for p in (out / "yolo").glob("*")} == {"a.txt", "a_2.txt", "deep"}


def test_a_class_does_not_lead_out_of_the_folder(folder, out):
    model = Model()
    model.class_names = ("a", "../../b")
    detect(model, [folder / "a.png"], out, formats=["crops"])
    assert [p.parent.name for p in out.rglob("*-1.png")] == ["______b"]


def test_other_formats_are_not_resumed(folder, out):
    detect(Model(), [folder], out, formats=["coco"])
    with pytest.raises(ValueError, match=r"other settings \(formats=\['coco'\], now formats=None\)"):
        detect(Model(), [folder], out, resume=True)
    with pytest.raises(OptionError, match="no format 'coc'; did you mean coco"):
        detect(Model(), [folder], out, formats=["coc"])


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../a.png"},
        {"name": 5},
        {"name": "b.png"},
        {"width": "60"},
        {"detections": [{}]},
        {"detections": [{"label": "x", "name": "b", "score": 0.9, "box": [0, 0, 3, 3]}]},
        {"detections": [{"label": 1, "name": "b", "score": 0.9, "box": 3}]},
    ],
)
def test_entries_that_somebody_changed_are_not_gone_on_with(folder, out, change):
    detect(Model(), [folder], out, formats=FORMATS)
    header, first, *rest = (out / "detections.jsonl").read_text().splitlines()
    first = json.dumps({**json.loads(first), **change})
    (out / "detections.jsonl").write_text("\n".join([header, first, *rest]) + "\n")
    with pytest.raises(ValueError, match="is not, or not only, what detection writes"):
        detect(Model(), [folder], out, resume=True, formats=FORMATS)


def test_the_command(folder, out, monkeypatch, capsys):
    monkeypatch.setattr("frcnn.commands.model.load_model", lambda *arguments: Model())
    words = ["detect", str(folder), "--model", "any.pth", "--output", str(out), "--formats", "coco", "crops"]
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert not caught.value.code and f"formats     {out / 'coco'}, {out / 'crops'}" in capsys.readouterr().out
    assert len(list((out / "crops" / "b").rglob("*.png"))) == 3
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "pdf"])
    assert caught.value.code == 2 and "--formats" in capsys.readouterr().err
