"""Downloads, against a small server on loopback that truncates, refuses and lies."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import frcnn
from frcnn.checkpoint import download as weights
from frcnn.checkpoint.download import DownloadError, cache_dir, download, sha256_prefix
from frcnn.checkpoint.pretrained import load_backbone

BODY = bytes(range(256)) * 4096
PREFIX = hashlib.sha256(BODY).hexdigest()[:8]
NAME = f"model-{PREFIX}.pth"


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``cut`` holds how many bytes each of the next answers sends before it hangs up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.ranges = True
        self.failures: list[int] = []
        self.requests: list[str | None] = []

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.server.failures:
            self.send_error(self.server.failures.pop(0))
            return
        body = self.server.files.get(self.path.removeprefix("/"))
        if body is None:
            self.send_error(404)
            return
        start = 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = self.server.cut.pop(0) if self.server.cut else len(body)
        self.wfile.write(body[start : start + stop])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(weights, "BACKOFF_SECONDS", 0)
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.files[NAME] = BODY
        yield running
        running.shutdown()


def test_a_file_is_downloaded_once(server, tmp_path):
    path = download([server.address(NAME)], tmp_path)
    assert path == tmp_path / NAME and path.read_bytes() == BODY
    assert download([server.address(NAME)], tmp_path) == path
    assert server.requests == [None]
    assert {entry.name for entry in tmp_path.iterdir()} == {NAME, f".{NAME}.lock"}


def test_a_broken_transfer_goes_on_where_it_broke(server, tmp_path):
    server.cut = [100_000, 300_000]
    assert download([server.address(NAME)], tmp_path).read_bytes() == BODY
    assert server.requests == [None, "bytes=100000-", "bytes=400000-"]


def test_the_next_run_goes_on_where_this_one_gave_up(server, tmp_path):
    server.cut = [1000] * weights.ATTEMPTS
    with pytest.raises(DownloadError, match="broke off after 4000 bytes"):
        download([server.address(NAME)], tmp_path)
    assert not (tmp_path / NAME).exists()
    assert download([server.address(NAME)], tmp_path).read_bytes() == BODY
    assert server.requests[-1] == "bytes=4000-"


def test_a_server_that_cannot_resume_is_read_from_the_start(server, tmp_path):
    server.ranges = False
    server.cut = [100_000]
    assert download([server.address(NAME)], tmp_path).read_bytes() == BODY
    assert server.requests == [None, "bytes=100000-"]


def test_a_remainder_of_another_file_is_thrown_away(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 5000)
    assert download([server.address(NAME)], tmp_path).read_bytes() == BODY
    assert server.requests == ["bytes=5000-", None]


def test_a_whole_remainder_needs_no_more_bytes(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(BODY)
    assert download([server.address(NAME)], tmp_path).read_bytes() == BODY
    assert server.requests == [f"bytes={len(BODY)}-"]


def test_a_wrong_hash_is_refused(server, tmp_path):
    server.files[NAME] = BODY[:-1] + b"!"
    with pytest.raises(DownloadError, match=f"another sha256 than {PREFIX}"):
        download([server.address(NAME)], tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [f".{NAME}.lock"]


def test_a_damaged_file_in_the_cache_is_refused(server, tmp_path):
    (tmp_path / NAME).write_bytes(BODY[:-1])
    with pytest.raises(DownloadError, match="damaged or another file; delete it"):
        download([server.address(NAME)], tmp_path)
    assert server.requests == []


def test_404_is_said_at_once_and_the_mirror_is_tried(server, tmp_path):
    del server.files[NAME]
    with pytest.raises(DownloadError, match="answered 404") as caught:
        download([server.address(NAME)], tmp_path)
    assert len(server.requests) == 1
    assert str(tmp_path / NAME) in str(caught.value)
    server.files[f"mirror/{NAME}"] = BODY
    path = download([server.address(NAME), server.address(f"mirror/{NAME}")], tmp_path)
    assert path.read_bytes() == BODY


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.failures = [503, 429]
    assert download([server.address(NAME)], tmp_path).read_bytes() == BODY


def test_offline_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BACKOFF_SECONDS", 0)
    with Server() as closed:
        address = closed.address(NAME)
    with pytest.raises(DownloadError) as caught:
        download([address], tmp_path)
    assert "no connection" in str(caught.value)
    assert f"download {address} elsewhere and put it at {tmp_path / NAME}" in str(caught.value)


def test_processes_that_ask_at_once_download_once(server, tmp_path):
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(download([server.address(NAME)], tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / NAME] * 4
    assert server.requests == [None]


def test_the_cache_is_torch_hubs(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    assert cache_dir() == tmp_path / "checkpoints"


def test_a_name_without_a_hash_is_refused():
    with pytest.raises(ValueError, match="8 hex digits"):
        sha256_prefix("model.pth")


def published_file(tmp_path, content: dict) -> tuple[bytes, str]:
    """A torch file's bytes, and the eight digits that begin its sha256."""
    file = tmp_path / "saved.pth"
    torch.save(content, file)
    data = file.read_bytes()
    return data, hashlib.sha256(data).hexdigest()[:8]


def test_build_downloads_the_published_checkpoint(server, tmp_path, monkeypatch, small_recipe):
    import dataclasses

    source = frcnn.build(small_recipe, num_classes=80)
    data, prefix = published_file(tmp_path, {"meta": {}, "state_dict": source.state_dict()})
    server.files[f"v2.0/small-{prefix}.pth"] = data
    monkeypatch.setattr(weights, "STORES", (server.address(""),))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    published = dataclasses.replace(small_recipe.published, checkpoint=f"v2.0/small-{prefix}.pth")
    model = frcnn.build(dataclasses.replace(small_recipe, published=published), weights="coco")
    assert (tmp_path / "checkpoints" / f"small-{prefix}.pth").exists()
    assert model.class_names[0] == "person" and len(model.class_names) == 80
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_backbone_is_downloaded_from_its_address(server, tmp_path, monkeypatch, small_recipe):
    source = frcnn.build(small_recipe)
    state = {
        **source.backbone.state_dict(),
        "fc.weight": torch.zeros(1000, 512),
        "fc.bias": torch.zeros(1000),
    }
    data, prefix = published_file(tmp_path, state)
    server.files[f"resnet18-{prefix}.pth"] = data
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    model = frcnn.build(small_recipe)
    load_backbone(model, server.address(f"resnet18-{prefix}.pth"))
    assert torch.equal(model.backbone.layer4[1].conv2.weight, source.backbone.layer4[1].conv2.weight)
