"""A valid annotation file, to be spoiled."""

from __future__ import annotations

import json
import re

import pytest
from tiny_coco import read_content, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of 6 images with 2 boxes each."""
    path = tmp_path_factory.mktemp("table")
    write_tiny(path)
    (path / "images" / "sub").mkdir()
    (path / "images" / "sub" / "é 1.png").write_bytes((path / "images" / "0.png").read_bytes())
    return path


@pytest.fixture(scope="module")
def valid(folder):
    return read_content(folder / "annotations.json")


@pytest.fixture
def write(folder):
    """Writes bytes, or a content as JSON, to the annotation file under test; "@1e400" becomes a number."""
    path = folder / "spoiled.json"

    def write(content):
        if not isinstance(content, bytes):
            content = re.sub(r'"@([^"]*)"', r"\1", json.dumps(content)).encode()
        path.write_bytes(content)
        return path

    yield write
    path.unlink(missing_ok=True)
