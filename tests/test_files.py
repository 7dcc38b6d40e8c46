"""Files that are written whole or not at all."""

import os
import stat

import pytest

from frcnn.files import check_keeps, check_writable, replace_text, replacing


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


@pytest.mark.parametrize(
    ("name", "error"),
    [("no/a.json", FileNotFoundError), ("folder", IsADirectoryError), ("file/a.json", FileNotFoundError)],
)
def test_what_cannot_be_written_is_found_out_before(name, error, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    check_writable(tmp_path / "a.json")
    check_writable(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]  # nothing was made on trial
    with pytest.raises(error, match=name):
        check_writable(tmp_path / name)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_found_out_before(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"a\.json"):
        check_writable(tmp_path / "a.json")


def test_what_is_read_is_not_written(tmp_path):
    for name in ("a.json", ".b.json.tmp"):
        (tmp_path / name).write_text("read")
    (tmp_path / "other.json").symlink_to(tmp_path / "a.json")
    absent = tmp_path / "absent"
    for path in (tmp_path / "a.json", tmp_path / "." / "a.json", tmp_path / "other.json"):
        with pytest.raises(ValueError, match=rf"{path.name} would overwrite .*a\.json, which is read"):
            check_keeps([absent, tmp_path / "a.json"], path)
    with pytest.raises(ValueError, match=r"\.b\.json\.tmp"):
        check_keeps([tmp_path / ".b.json.tmp"], tmp_path / "b.json")
    check_keeps([absent, tmp_path / ".b.json.tmp"], tmp_path / "a.json")
    check_keeps([absent, tmp_path / "a.json"], absent, tmp_path / "none")
