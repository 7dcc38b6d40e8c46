"""Folders, patterns and URLs as images."""

from __future__ import annotations

import io
import itertools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from frcnn.inference.sources import expand, find_images
from frcnn.read_image import ImageError, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.PNG", "sub/c.png", "img[1].png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png())
    (tmp_path / "d.png").mkdir()
    return tmp_path


def names(images, folder):
    return [str(Path(image).relative_to(folder)) for image in images]


def test_folders_and_patterns_become_their_images(folder):
    everything = ["a.PNG", "b.png", "img[1].png", "sub/c.png"]
    assert names(expand(folder), folder) == names(expand(str(folder)), folder) == everything
    assert names(expand(f"{folder}/*"), folder) == ["a.PNG", "b.png", "img[1].png"]
    assert names(expand(folder / "**" / "*.png"), folder) == ["b.png", "img[1].png", "sub/c.png"]
    given = [folder / "b.png", folder / "sub", f"{folder}/[a].*"]
    assert names(expand(given), folder) == ["b.png", "sub/c.png", "a.PNG"]


def test_one_image_stays_one_image(folder):
    for image in (folder / "b.png", str(folder / "img[1].png"), str(folder / "absent.png"), PIXELS):
        assert expand(image) is image
    url = "https://example.invalid/a[1]*.png?x"
    assert expand(url) is url and list(expand([url, PIXELS])) == [url, PIXELS]
    assert list(expand([])) == []


def test_what_names_no_image_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match=r"\*\.jpg: no image matches this pattern"):
        expand(f"{folder}/*.jpg")
    with pytest.raises(FileNotFoundError, match="no images"):
        list(expand([folder / "d.png"]))


def test_images_without_end_are_taken_one_by_one():
    endless = expand(PIXELS for _ in itertools.count())
    assert next(endless) is PIXELS and next(endless) is PIXELS


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        body = {"/a.png": png(), "/cut.png": png(), "/text": b"not an image"}.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + (self.path == "/cut.png")))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_a_url_is_an_image(server):
    assert np.array_equal(read_image(f"{server}/a.png"), PIXELS[..., ::-1])


def test_urls_without_an_image_are_named(server, monkeypatch):
    for path, reason in (
        ("absent.png", "could not be downloaded: the server answered 404"),
        ("cut.png", "could not be downloaded: the transfer broke off after"),
        ("text", "is not an image that can be decoded"),
    ):
        with pytest.raises(ImageError, match=f"{server}/{path} {reason}"):
            read_image(f"{server}/{path}")
    monkeypatch.setattr("frcnn.read_image.URL_BYTES", 100)
    with pytest.raises(ImageError, match="more than the 100 allowed"):
        read_image(f"{server}/a.png")


def test_results_of_earlier_runs_are_not_images(tmp_path):
    """Those that a first line of ours marks; a file of that name alone hides no image."""
    for name in ("a.png", "found/a.png", "found/deeper/b.png", "other/c.png", "ours/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "found" / "detections-1-of-2.jsonl").write_text('{"frcnn_detect": {"size": 1}}\n')
    (tmp_path / "other" / "detections.jsonl").write_text('{"image": "somebody else\'s"}\n')
    (tmp_path / "ours" / "detections_of_birds.jsonl").mkdir()
    found = [path for path, _ in find_images([tmp_path], tmp_path / "new").images]
    assert found == [tmp_path / name for name in ("a.png", "other/c.png", "ours/d.png")]
    inside = [path for path, _ in find_images([tmp_path / "found"]).images]  # named, it is what is wanted
    assert inside == [tmp_path / "found" / "a.png", tmp_path / "found" / "deeper" / "b.png"]


def test_an_image_is_found_once_however_it_is_spelled(tmp_path, monkeypatch):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(find_images(["a.png", "./a.png", tmp_path / "a.png", tmp_path]).images) == 1


@pytest.mark.parametrize("images", [None, 3, object()])
def test_what_is_no_image_at_all_is_told(images):
    with pytest.raises(TypeError, match=r"images to predict are a path, URL, .* not (NoneType|int|object)"):
        expand(images)
