"""`frcnn report`, `frcnn compare`, `frcnn plot`: their pages, their files and their refusals."""

import base64
import json
import threading
import xml.etree.ElementTree
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import torch
from command import run
from hypothesis import given
from hypothesis import strategies as st
from test_evaluate import Oracle, truth_of
from test_read_log import OURS, train, val, write
from tiny_coco import write_tiny

from frcnn.checkpoint import download
from frcnn.checkpoint.plain import to_plain
from frcnn.engine.read_log import read_run
from frcnn.engine.report_page import Chart
from frcnn.structures import Detections

pytest.importorskip("jinja2")
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The tables of a page, its images, its charts' titles; fails on tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.images, self.open, self.titles, self.loads = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "link", "iframe") and not any(name.startswith("on") for name in values)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "svg":
            self.titles.append(values["aria-label"])
        if tag == "img":
            self.images.append(values["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += text


def shown(value):
    return "–" if value is None else f"{value:.3f}"


@pytest.fixture
def mistaken(tmp_path, monkeypatch):
    """A model whose boxes are off, at times of another class; its checkpoint's name, in a run's folder."""
    data = write_tiny(tmp_path / "data", images=20)
    generator = torch.Generator().manual_seed(0)
    answers = []
    for found in truth_of(*data):
        noise = torch.randn(found.boxes.shape, generator=generator) * 2.5
        labels = (found.labels + (torch.rand(len(found.labels), generator=generator) < 0.3)) % 2
        answers.append(Detections(found.boxes + noise, found.scores, labels))
    monkeypatch.setattr("frcnn.commands.report.load_detector", lambda *_: Oracle(answers))
    write(tmp_path / "run" / "log.jsonl", *OURS)
    (tmp_path / "run" / "best.pth").write_bytes(b"weights")
    return (tmp_path / "run" / "best.pth", *data)


def test_the_page_has_the_numbers_of_the_json_file_and_needs_nothing_else(mistaken, tmp_path, capsys):
    html, listed = tmp_path / "r.html", tmp_path / "r.json"
    assert run("report", *mistaken, "--html", html, "--json-file", listed) == 0
    text, found = html.read_text(), json.loads(listed.read_text())
    page = Page(text)
    classes, calibration, errors, confusion = page.tables

    figures = [[name, str(one["objects"])] for name, one in found["per_class"].items()]
    for row, one in zip(figures, found["per_class"].values(), strict=True):
        row += [shown(one[key]) for key in ("AP", "AP50", "AP_s", "AP_m", "AP_l")]
    assert classes[1:] == figures and [row[0] for row in figures] == ["bar", "square"]
    for name in ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75", "bbox_mAP_s", "bbox_mAP_m", "bbox_mAP_l"):
        assert f'<b class="big">{shown(found["metrics"][name])}</b>' in text
    assert [row[1:] for row in calibration[1:]] == [
        [str(one["count"]), shown(one["score"]), shown(one["precision"])] for one in found["calibration"]
    ]
    assert f"Expected calibration error {found['calibration_error']:.3f}" in text
    assert [row[:3] for row in errors[1:]] == [
        [name, str(one["count"]), f"{100 * one['share']:.1f} %"] for name, one in found["errors"].items()
    ]
    counts = [[int(cell.replace("·", "0")) for cell in row[1:]] for row in confusion[1:]]
    assert counts == found["confusion"] and sum(map(sum, counts)) > 30
    assert found["seconds_per_image"] > 0
    assert f"{1000 * found['seconds_per_image']:.1f} ms each" in text

    assert page.titles[:2] == ["loss", "val_loss"] and len(page.titles) == 7
    assert found["run"]["curves"]["bbox_mAP"] == [[1, 0.2], [2, 0.1]]
    kinds = [found[kind] for kind in ("label_errors", "mistakes", "misses")]
    assert all(kinds) and len(page.images) == sum(min(12, len(cases)) for cases in kinds)
    for address in page.images:
        kind, _, content = address.partition(",")
        assert kind == "data:image/jpeg;base64"
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape in ((48, 64, 3), (64, 48, 3))
    assert page.loads == page.images and "http:" not in text and "https:" not in text
    assert "@media (prefers-color-scheme: dark)" in text

    output = capsys.readouterr().out
    assert f"bbox_mAP_50  {found['metrics']['bbox_mAP_50']:6.3f}" in output and "missed" in output


def test_a_report_says_which_images_could_not_be_used(mistaken, tmp_path):
    (mistaken[2] / "3.png").write_bytes(b"no image")
    assert run("report", *mistaken, "--html", tmp_path / "r.html", "--json-file", tmp_path / "r.json") == 1
    assert "1 could not be used" in (tmp_path / "r.html").read_text()
    assert "3.png" in next(iter(json.loads((tmp_path / "r.json").read_text())["failed"]))


def test_names_in_files_are_text_on_the_page(mistaken, tmp_path, monkeypatch):
    content = json.loads(mistaken[1].read_text())
    content["categories"][0]["name"] = name = "<script>alert(1)</script>"
    mistaken[1].write_text(json.dumps(content))
    oracle = Oracle(truth_of(*mistaken[1:]), class_names=("bar", name))
    monkeypatch.setattr("frcnn.commands.report.load_detector", lambda *_: oracle)
    assert run("report", *mistaken, "--html", tmp_path / "r.html") == 0
    assert name in Page((tmp_path / "r.html").read_text()).tables[0][2][0]


def test_a_report_refuses_before_it_works(mistaken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("frcnn.commands.report.load_detector", lambda *_: pytest.fail("it has begun"))
    for options, told in (
        (["--html", mistaken[1]], "would overwrite"),
        (["--html", mistaken[0]], "would overwrite"),
        (["--html", mistaken[2] / "3.png"], "would overwrite"),
        (["--html", tmp_path / "r.html", "--json-file", tmp_path / "run" / "log.jsonl"], "would overwrite"),
        (["--html", tmp_path / "r", "--json-file", tmp_path / "r"], "is the page's file too"),
        (
            ["--html", tmp_path / "r", "--json-file", tmp_path / "run" / ".." / "r"],
            "is the page's file too",
        ),
        (["--html", tmp_path / "none" / "r.html"], "there is no folder"),
        (["--html", tmp_path / "r.html", "--run", tmp_path / "data"], "has no training log"),
        (["--html", tmp_path / "r.html", "--min-score", "2"], "--min-score 2.0: it is a number from 0 to 1"),
    ):
        assert run("report", *mistaken, *options) in (1, 2)
        assert told in capsys.readouterr().err


@pytest.fixture
def runs(tmp_path, recipe):
    """A folder of ours with another rate than the next, and a log of MMDetection 3's."""
    for name, rate in (("a", 2e-4), ("b", 1e-4)):
        write(tmp_path / name / "log.jsonl", *OURS[: 4 if name == "b" else 6])
        plain = to_plain(recipe)
        plain["schedule"]["lr"] = rate
        (tmp_path / name / "recipe.json").write_text(json.dumps(plain))
    theirs = write(tmp_path / "scalars.json", {"loss": 2.0, "step": 10}, {"coco/bbox_mAP": 0.375, "step": 1})
    return tmp_path / "a", tmp_path / "b", theirs


def test_runs_side_by_side(runs, mistaken, tmp_path, capsys):
    assert run("report", *mistaken, "--html", tmp_path / "r.html", "--json-file", tmp_path / "r.json") == 0
    found = json.loads((tmp_path / "r.json").read_text())
    capsys.readouterr()
    assert run("compare", *runs, tmp_path / "r.json", "--html", tmp_path / "c.html") == 0
    lines = capsys.readouterr().out.splitlines()
    width = len(lines[0]) - len(lines[0].lstrip())
    rows = {line[:width].strip(): line[width:].split() for line in lines}
    assert rows["bbox_mAP"] == ["0.1", "0.2", "0.375", f"{found['metrics']['bbox_mAP']:.4g}"]
    assert rows["best bbox_mAP"] == ["0.2", "0.2", "0.375", "0.2"]
    assert rows["AP of bar"] == ["-", "-", "-", f"{found['per_class']['bar']['AP']:.4g}"]
    assert rows["steps"] == ["20", "15", "10", "20"]
    assert rows["schedule.lr"] == ["0.0002", "0.0001", "-", "-"]
    assert [name for name in rows if "." in name] == ["schedule.lr"]
    text = (tmp_path / "c.html").read_text()
    page = Page(text)
    assert page.titles[0] == "loss" and "bbox_mAP_50" in page.titles and not page.loads
    cells = {row[0]: row[1:] for row in page.tables[0]}
    assert cells == rows
    told = [*(read_run(path, "").curves for path in runs), found["run"]["curves"]]
    assert text.count("<polyline") == sum(map(len, told))


def test_runs_that_share_nothing_are_refused(tmp_path, capsys):
    one = write(tmp_path / "a.json", train(1, 1, 2.0) | {"lr": None})
    other = write(tmp_path / "b.json", val(1, 1, 0.5) | {"lr": None})
    assert run("compare", one, other) == 1
    assert "the runs have nothing in common" in capsys.readouterr().err
    assert run("compare", one, one) == 2
    assert "name at least two runs" in capsys.readouterr().err
    assert run("compare", one, tmp_path / "c") == 1
    assert "c: no such file or folder, nor a recipe with a published log" in capsys.readouterr().err


def test_curves_as_a_drawing_and_as_a_page(runs, tmp_path, capsys):
    for name in ("p.svg", "p.html"):
        assert run("plot", *runs, "--output", tmp_path / name) == 0
    root = xml.etree.ElementTree.parse(tmp_path / "p.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    titles = [one.get("aria-label") for one in root.iter() if one.get("aria-label")]
    assert (
        titles
        == Page((tmp_path / "p.html").read_text()).titles
        == [
            "loss",
            "val_loss",
            "lr",
            "bbox_mAP",
            "bbox_mAP_50",
        ]
    )
    for one in root.iter("{http://www.w3.org/2000/svg}polyline"):
        points = np.array([point.split(",") for point in one.get("points").split()], float)
        assert (points >= [50, 35]).all() and (points <= [388, 230]).all()
    names = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert names.count(str(runs[0])) == 5 and names.count(str(runs[2])) == 2


@pytest.mark.parametrize("loss", [1e-9, 1.0, 1e10, 9e99])
def test_axes_hold_losses_of_every_size(tmp_path, loss):
    log = write(tmp_path / "log.jsonl", *(train(1, step, loss / step) | {"lr": None} for step in (1, 2)))
    assert run("plot", log, "--output", tmp_path / "p.svg") == 0
    texts = xml.etree.ElementTree.parse(tmp_path / "p.svg").getroot().iter("{http://www.w3.org/2000/svg}text")
    marks = [float(one.text) for one in texts if one.get("text-anchor") == "end"]
    assert 0.5 * loss < max(marks) <= loss * 1.001 and len(marks) <= 14


@given(st.floats(1e-99, 1e99), st.integers(2, 9))
def test_the_marks_of_an_axis_are_few_and_round(most, ticks):
    step = Chart.step(most, ticks)
    assert most / step < ticks and most / step >= ticks / 2.51
    assert f"{step:.0e}"[0] in "125"


def test_a_plot_refuses(runs, tmp_path, capsys):
    for words, told in (
        ([runs[2], "--output", tmp_path / "p.png"], "an output ending in .svg or .html"),
        ([runs[2], "--output", tmp_path / "none" / "p.svg"], "there is no folder"),
        ([tmp_path, "--output", tmp_path / "p.svg"], "has no training log"),
        (["small_r18_fpn", "--output", tmp_path / "p.svg"], "nor a recipe with a published log"),
    ):
        assert run("plot", *words) in (1, 2)
        assert told in capsys.readouterr().err
    (tmp_path / "r.json").write_text('{"run": {"curves": {}, "figures": {}, "settings": {}}}')
    assert run("plot", tmp_path / "r.json", "--output", tmp_path / "p.svg") == 1
    assert "there is nothing to draw" in capsys.readouterr().err
    log = write(tmp_path / "log.svg", *OURS)
    assert run("plot", log, "--output", log) == 1
    assert "would overwrite" in capsys.readouterr().err


def test_a_published_log_is_downloaded_once_and_drawn_beside_ones_own(runs, tmp_path, monkeypatch):
    name = "faster_rcnn_r50_fpn_1x_coco"
    path = f"/v2.0/faster_rcnn/{name}/{name}_20200130_204655.log.json"
    asked = []

    class Store(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(self.path)
            body = (json.dumps(train(1, 50, 2.0)) + "\n" + json.dumps(val(1, 50, 0.374))).encode()
            self.send_response(200 if self.path == path else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        monkeypatch.setattr(download, "STORES", (f"http://127.0.0.1:{store.server_address[1]}/",))
        monkeypatch.setattr(download, "cache_dir", lambda: tmp_path / "cache")
        for _ in range(2):
            assert run("plot", name, runs[0], "--output", tmp_path / "p.svg") == 0
        store.shutdown()
    assert asked == [path]
    text = (tmp_path / "p.svg").read_text()
    assert f">{name}</text>" in text and f">{runs[0]}</text>" in text
