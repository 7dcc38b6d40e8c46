"""Files that are written whole or not at all."""

import os
import stat

import pytest

from frcnn.files import replace_text, replacing


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    replace_text(tmp_path / "a.json", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.json") as file:
        file.write(b"half of it")
        raise RuntimeError
    assert (tmp_path / "a.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_writer_left_is_taken_over(tmp_path):
    (tmp_path / ".a.json.tmp").write_text("left by a killed process")
    replace_text(tmp_path / "a.json", "new")
    assert os.listdir(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "new"


def test_files_have_the_usual_permissions(tmp_path):
    umask = os.umask(0o022)
    try:
        replace_text(tmp_path / "a.json", "new")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
