"""What `frcnn detect` is given: folders with files of every format, addresses, patterns, and nothing."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import PIL.Image
import pytest
from quarter_finder import Model

from frcnn.engine.detect import detect
from frcnn.inference.sources import check_there, find_images


def test_other_formats_are_read_or_counted(folder, out):
    for name in ("c.gif", "c.ppm", "c.jp2", "c.JFIF", "c.avif"):
        PIL.Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(folder / name)
    for name in ("x.heic", "y.HEIC", "z.dng"):
        (folder / name).write_bytes(b"?")
    result = detect(Model(), [folder], out)
    assert not result.failed and result.not_read == {".heic": 2, ".dng": 1}
    names = {path.name for path in result.drawings}
    assert {"c.gif.png", "c.ppm.png", "c.jp2.png", "c.JFIF.png", "c.avif.png"} <= names
    assert all(cv2.imread(str(path)) is not None for path in result.drawings)


@pytest.fixture
def site(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_addresses_and_patterns(folder, out, site):
    addresses = [f"{site}/a.png?size=3", f"{site}/deep/a.png", f"{site}/none.png"]
    result = detect(Model(), [*addresses, str(folder / "de*" / "*.png"), folder / "a.png"], out)
    entries = {entry["image"]: entry for entry in json.loads(result.detections.read_text())}
    assert list(entries)[:3] == addresses and list(result.failed) == [f"{site}/none.png"]
    assert "could not be downloaded" in entries[f"{site}/none.png"]["error"]
    drawn = [entry["drawing"] for entry in entries.values() if "drawing" in entry]
    assert drawn == ["a.png", "a_2.png", "a_3.png", "a_4.png"]
    assert entries[addresses[0]]["detections"] == entries[str(folder / "a.png")]["detections"]
    again = detect(Model(), [*addresses, folder / "a.png"], out, resume=True)
    assert again.resumed == 3
    with pytest.raises(FileNotFoundError, match="no image matches this pattern"):
        find_images([folder / "*.bmp"])
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        check_there([addresses[0], folder / "*.none", folder, folder / "absent"])


def test_nothing_to_detect_in_is_an_error(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such image or folder"):
        find_images([folder / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no images"):
        find_images([tmp_path / "empty"])
    (tmp_path / "empty" / "a.heic").write_bytes(b"?")
    with pytest.raises(FileNotFoundError, match=r"not supported: \.heic 1"):
        find_images([tmp_path / "empty"])
