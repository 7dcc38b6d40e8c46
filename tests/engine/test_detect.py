"""Detection over files and folders: nothing overwritten, nothing lost."""

import errno
import json
import os
import signal

import cv2
import numpy as np
import pytest
from huge_png import huge_png
from quarter_finder import Model, Stopped, stop_at

from frcnn import cli
from frcnn.checked import OptionError
from frcnn.engine.detect import detect
from frcnn.engine.interrupt import Interrupted


def contents(folder):
    """Every file below, with its bytes."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines_of(out):
    return [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]


def test_folders_keep_their_structure_and_boxes_are_in_pixels(folder, out):
    result = detect(Model(), [folder], out)
    entries = json.loads(result.detections.read_text())
    assert [entry["image"] for entry in entries] == [
        str(folder / n) for n in ("a.png", "deep/a.png", "deep/b.jpg")
    ]
    assert entries[0] == {
        "image": str(folder / "a.png"),
        "width": 60,
        "height": 40,
        "detections": [{"label": 1, "name": "b", "score": pytest.approx(0.9), "box": [0, 0, 30, 20]}],
        "drawing": "a.png",
    }
    for name in ("a.png", "deep/b.jpg"):
        drawn, source = cv2.imread(str(out / name)), cv2.imread(str(folder / name))
        assert drawn.shape == source.shape and (drawn != source).any()
    assert result.boxes == 3 and not result.failed
    settings = {"model": "weights", "size": [1333, 800], "min_score": 0.3, "draw": True, "classes": None}
    settings["formats"] = None
    assert lines_of(out) == [{"frcnn_detect": settings}, *entries]


def test_images_are_not_drawn_unless_wanted(folder, out):
    result = detect(Model(), [folder / "a.png"], out, draw=False)
    assert result.drawings == []
    assert sorted(out.iterdir()) == [result.detections, result.lines]


def test_a_lower_threshold_lists_faint_boxes(folder, out):
    assert detect(Model(), [folder / "a.png"], out, min_score=0.05).boxes == 2


def test_other_classes_are_neither_listed_nor_drawn(folder, out, tmp_path):
    image = folder / "a.png"
    assert detect(Model(), [image], out, min_score=0.05, classes=["b"]).boxes == 1
    nothing = detect(Model(), [image], tmp_path / "none", classes=["a"])
    assert (
        nothing.boxes == 0 and (cv2.imread(str(tmp_path / "none" / "a.png")) == cv2.imread(str(image))).all()
    )
    with pytest.raises(OptionError, match="no class 'bb'; did you mean b"):
        detect(Model(), [image], tmp_path / "new", classes=["bb"])
    assert not (tmp_path / "new").exists()


def test_equal_names_do_not_overwrite_each_other(folder, out):
    cv2.imwrite(str(folder / "deep" / "A.PNG"), np.zeros((9, 9, 3), np.uint8))
    result = detect(Model(), [folder / "a.png", folder / "deep" / "a.png", folder / "deep" / "A.PNG"], out)
    assert [path.name for path in result.drawings] == ["a.png", "a_2.png", "A_3.PNG"]
    assert [cv2.imread(str(path)).shape[0] for path in result.drawings] == [40, 30, 9]


def test_an_image_named_twice_is_done_once(folder, out):
    detect(Model(), [folder / "a.png", folder, folder / "a.png"], out)
    assert len(lines_of(out)) == 4


@pytest.mark.parametrize("paths", [["a.png"], ["."], ["deep/../a.png"]])
def test_an_input_is_never_overwritten(folder, monkeypatch, paths):
    monkeypatch.chdir(folder)
    before, model = contents(folder), Model()
    with pytest.raises(ValueError, match=r"a\.png, an input image.* be overwritten: choose .*detections"):
        detect(model, paths, ".")
    assert contents(folder) == before and model.seen == 0


def test_an_input_is_not_overwritten_through_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    before = contents(folder)
    with pytest.raises(ValueError, match="an input image"):
        detect(Model(), [folder], tmp_path / "link")
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["a.png", "deep/b.jpg", "detections.json", "detections.jsonl"])
def test_no_other_file_is_overwritten(folder, out, name):
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("somebody's")
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"choose (another|an) output"):
            detect(Model(), [folder], out, resume=resume)
    assert contents(out) == {str(out / name): b"somebody's"}


def test_an_output_that_is_a_file_is_refused(folder, out):
    out.write_text("")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        detect(Model(), [folder], out)


def test_the_output_folder_is_not_scanned(folder):
    first = detect(Model(), [folder], folder / "deep" / "out")
    again = detect(Model(), [folder], folder / "deep" / "out", resume=True)
    assert len(first.drawings) == len(again.drawings) == again.resumed == 3
    before = contents(folder)
    assert detect(Model(), [folder / "deep"], folder / "deep" / "out", resume=True).resumed == 2
    assert contents(folder) == before
    # results without drawings may lie beside the images
    assert len(detect(Model(), [folder / "deep"], folder / "deep", draw=False).failed) == 0


def test_bad_images_are_listed_and_do_not_stop_the_others(folder, out):
    good = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))[
        1
    ].tobytes()
    bad = {
        "cut.jpg": good[: len(good) // 2],
        "empty.png": b"",
        "huge.png": huge_png(),
        "page.jpg": b"<html>",
        "sliver.png": cv2.imencode(".png", np.zeros((1, 3000, 3), np.uint8))[1].tobytes(),
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to(folder / "deep" / "a.png")
    result = detect(Model(), [folder], out)
    assert sorted(result.failed) == sorted(str(folder / name) for name in bad)
    assert all(path in reason for path, reason in result.failed.items())
    assert len(result.drawings) == 4
    listed = {entry["image"]: entry.get("error") for entry in json.loads(result.detections.read_text())}
    assert len(listed) == 9 and {path: listed[path] for path in result.failed} == result.failed


def test_a_file_that_goes_away_is_listed(folder, out):
    paths = [folder / "a.png", folder / "deep" / "a.png"]

    class Vanishing(Model):
        def fingerprint(self):
            os.remove(paths[1])
            return super().fingerprint()

    assert list(detect(Vanishing(), paths, out).failed) == [str(paths[1])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_score": 7}, "min_score=7: it is a number from 0 to 1"),
        ({"min_score": -0.1}, "min_score"),
        ({"min_score": float("nan")}, "min_score"),
        ({"batch_size": 0}, "batch_size=0: it is a whole number, 1 or more"),
        ({"size": (0, 800)}, "it is two whole numbers above 0"),
        ({"size": (1333.5, 800)}, "it is two whole numbers above 0"),
    ],
)
def test_options_are_checked_before_anything_is_made(folder, out, options, message):
    with pytest.raises(ValueError, match=message):
        detect(Model(), [folder], out, **options)
    assert not out.exists()


@pytest.mark.parametrize("draw", [True, False])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_done_stays_and_the_rest_is_resumed(folder, out, tmp_path, at, draw):
    expected = detect(Model(), [folder], tmp_path / "whole", draw=draw)
    with pytest.raises(Stopped):
        detect(Model(before=stop_at(at)), [folder], out, draw=draw)
    assert len(lines_of(out)) == 1 + at and not (out / "detections.json").exists()
    with pytest.raises(ValueError, match=r"jsonl holds the results of an earlier run: pass resume=True"):
        detect(Model(), [folder], out, draw=draw)
    model = Model()
    result = detect(model, [folder], out, draw=draw, resume=True)
    assert model.seen == 3 - at and result.resumed == at and result.boxes == 3
    for name in ("detections.json", "detections.jsonl"):
        assert (out / name).read_bytes() == (expected.detections.parent / name).read_bytes()
    assert len(contents(out)) == len(contents(tmp_path / "whole"))


def test_a_cut_last_line_is_dropped(folder, out):
    """Wherever it was cut: in the settings, in the first entry, in the last."""
    lines = detect(Model(), [folder], out, draw=False).lines
    content = lines.read_bytes()
    header = content.index(b"\n")
    for length in (0, 1, header - 1, header, header + 1, header + 30, len(content) - 20, len(content) - 1):
        lines.write_bytes(content[:length])
        if length < header + 200:
            (out / "detections.json").unlink()  # it is written last
        assert detect(Model(), [folder], out, draw=False, resume=True).boxes == 3
        assert lines.read_bytes() == content


def test_a_missing_drawing_is_made_again(folder, out):
    result = detect(Model(), [folder], out)
    drawn = result.drawings[1].read_bytes()
    result.drawings[1].unlink()
    again = detect(Model(), [folder], out, resume=True)
    assert again.resumed == 2 and result.drawings[1].read_bytes() == drawn
    assert len(json.loads(again.detections.read_text())) == 3


def test_failed_images_are_tried_again(folder, out):
    good = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(good[:-30])
    assert len(detect(Model(), [folder], out).failed) == 1
    assert len(detect(Model(), [folder], out, resume=True).failed) == 1
    (folder / "a.png").write_bytes(good)
    result = detect(Model(), [folder], out, resume=True)
    assert not result.failed and result.resumed == 2
    assert "error" not in json.loads(result.detections.read_text())[0]


def test_further_images_can_be_added(folder, out):
    detect(Model(), [folder / "a.png"], out)
    result = detect(Model(), [folder / "deep" / "a.png", folder / "a.png"], out, resume=True)
    assert [path.name for path in result.drawings] == ["a.png", "a_2.png"] and result.resumed == 1


@pytest.mark.parametrize(
    "change",
    [{"min_score": 0.5}, {"size": (64, 64)}, {"draw": False}, {"classes": ["b"]}, {"model": Model("others")}],
)
def test_other_settings_are_not_resumed(folder, out, change):
    detect(Model(), [folder], out)
    before = contents(out)
    options = {"model": Model(), **change}
    (name,) = change
    what = "another model" if name == "model" else rf"{name}=.*, now {name}=.*"
    with pytest.raises(ValueError, match=rf"a run with other settings \({what}\): resume with those"):
        detect(options.pop("model"), [folder], out, resume=True, **options)
    assert contents(out) == before


def test_a_file_of_another_kind_is_not_resumed(folder, out):
    out.mkdir()
    for text in ("{}\n", "[1, 2]\n", '{"frcnn_detect": 3}\n', "not JSON\n", "no line"):
        (out / "detections.jsonl").write_text(text)
        with pytest.raises(ValueError, match="is not, or not only, what detection writes"):
            detect(Model(), [folder], out, resume=True)
        assert (out / "detections.jsonl").read_text() == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_image(folder, out, number, capfd):
    def interrupt(seen):
        if seen == 1:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"stopped after 2 of 3 images; their results are in .*jsonl"):
        detect(Model(before=interrupt), [folder], out)
    assert "ends at once; the results of the images before are kept" in capfd.readouterr().err
    assert len(lines_of(out)) == 3 and len(list(out.rglob("*.png"))) == 2
    assert detect(Model(), [folder], out, resume=True).resumed == 2


def test_a_full_disk_is_named_and_costs_nothing_that_is_done(folder, out, monkeypatch):
    import frcnn.engine.detect as module

    writes = module.replacing
    count = 0

    def full(path):
        nonlocal count
        count += 1
        if count > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return writes(path)

    monkeypatch.setattr(module, "replacing", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*out/deep/a\.png'"):
        detect(Model(), [folder], out)
    monkeypatch.setattr(module, "replacing", writes)
    result = detect(Model(), [folder], out, resume=True)
    assert len(result.drawings) == 3 and all(path.exists() for path in result.drawings)
    assert result.resumed == 1


def command(*arguments):
    """Exit code of `frcnn detect`, whose model is the one above."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["detect", *map(str, arguments), "--model", "any.pth"])
    return caught.value.code or 0


def test_the_command_stops_resumes_and_tells_failures(folder, out, monkeypatch, capsys):
    (folder / "bad.png").write_bytes(b"")
    (folder / "x.heic").write_bytes(b"")

    def interrupt(seen):
        if seen == 0:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("frcnn.commands.model.load_model", lambda *arguments: Model(before=interrupt))
    monkeypatch.setattr("sys.argv", ["frcnn", "detect", str(folder), "--output", str(out)])
    assert command(folder, "--output", out) == 130
    error = capsys.readouterr().err
    assert "stopped after 1 of 4 images" in error
    assert error.splitlines()[-1] == f"continue with: frcnn detect {folder} --output {out} --resume"

    monkeypatch.setattr("frcnn.commands.model.load_model", lambda *arguments: Model())
    assert command(folder, "--output", out) == 1
    assert "holds the results of an earlier run" in capsys.readouterr().err
    assert command(folder, "--output", out, "--resume") == 1
    streams = capsys.readouterr()
    assert f"skipped: {folder / 'bad.png'}" in streams.err and ".heic 1" in streams.err
    assert "1 images were done before" in streams.out
    (folder / "bad.png").unlink()
    assert command(folder, "--output", out, "--resume") == 0


@pytest.mark.parametrize(
    "change",
    [
        {"drawing": "../escaped.png"},
        {"drawing": "/tmp/escaped.png"},
        {"drawing": 5},
        {"drawing": "a\0b.png"},
        {"drawing": "a.xyz"},
        {"detections": 5},
        {"detections": ["a"]},
        {"detections": None},
        {"image": None},
        [],
        "[" * 100_000,
    ],
)
def test_results_that_somebody_changed_are_not_gone_on_with(folder, out, change):
    """A drawing outside the output above all."""
    detect(Model(), [folder], out)
    header, first, *rest = (out / "detections.jsonl").read_text().splitlines()
    if isinstance(change, dict):
        first = json.dumps({**json.loads(first), **change})
    else:
        first = change if isinstance(change, str) else json.dumps(change)
    (out / "detections.jsonl").write_text("\n".join([header, first, *rest]) + "\n")
    before = contents(folder.parent)
    with pytest.raises(ValueError, match=r"detections\.jsonl is not, or not only, what detection writes"):
        detect(Model(), [folder], out, resume=True)
    assert contents(folder.parent) == before


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_a_name_that_is_no_text(folder, out):
    (folder / os.fsdecode(b"a\xff.png")).write_bytes((folder / "a.png").read_bytes())
    for shard in ((1, 2), (2, 2)):
        assert not detect(Model(), [folder], out, shard=shard).failed
