"""A large annotation file is parsed once."""

import numpy as np
import pytest
from tiny_coco import read_content, write_content, write_tiny

from frcnn.data import DatasetError, cache, coco, load_dataset


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """How often annotations have been parsed since; every file counts as large."""
    monkeypatch.setattr(cache, "LEAST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counted, read = [], coco.read_annotations
    monkeypatch.setattr(coco, "read_annotations", lambda *files: (counted.append(1), read(*files))[1])
    return counted


@pytest.fixture
def data(tmp_path):
    """With a box that is left out, and reported."""
    annotations, images = write_tiny(tmp_path / "data")
    content = read_content(annotations)
    content["annotations"][3]["bbox"][2] = 0
    content["annotations"][4]["iscrowd"] = 1
    return write_content(tmp_path / "data", content), images


def assert_same(one, other):
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(other, name))
            assert value.dtype == getattr(other, name).dtype
    assert one.summary() == other.summary() and one.category_ids == other.category_ids


def test_the_second_time_is_the_first_without_parsing(parsed, data):
    first, second = load_dataset(*data), load_dataset(*data)
    assert len(parsed) == 1
    assert_same(first, second)
    assert_same(first.for_training(), second.for_training())


def test_another_content_is_parsed_and_another_place_is_not(parsed, data, tmp_path):
    first = load_dataset(*data)
    (tmp_path / "copy.json").write_bytes(data[0].read_bytes())
    assert load_dataset(tmp_path / "copy.json", data[1]).annotation_file == tmp_path / "copy.json"
    assert len(parsed) == 1
    content = read_content(data[0])
    content["annotations"].pop()
    assert len(load_dataset(write_content(data[0].parent, content), data[1]).labels) == len(first.labels) - 1
    assert len(parsed) == 2


def test_what_is_damaged_is_made_again(parsed, data):
    first = load_dataset(*data)
    (file,) = cache.folder().glob("*.npz")
    whole = file.read_bytes()
    at = whole.index(first.xywh.tobytes())
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], whole[:at] + b"\1" + whole[at + 1 :]):
        parsed.clear()
        file.write_bytes(damaged)
        assert_same(load_dataset(*data), first)
        assert len(parsed) == 1 and file.read_bytes() == whole


def test_pickles_in_it_are_not_read(parsed, data):
    load_dataset(*data)
    (file,) = cache.folder().glob("*.npz")
    np.savez(file, others=np.array([print], dtype=object), xywh=np.array([print], dtype=object))
    assert len(load_dataset(*data)) == 6 and len(parsed) == 2


def test_small_files_and_folders_that_cannot_be_written_do_without(parsed, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(data[0]))  # a file
    load_dataset(*data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST", 1 << 20)
    load_dataset(*data)
    assert len(parsed) == 2 and not cache.folder().exists()


def test_errors_are_the_files_own_and_are_not_kept(parsed, data):
    with pytest.raises(DatasetError, match="no such annotation file"):
        load_dataset(data[0].with_name("gone.json"), data[1])
    data[0].write_text("[]")
    for _ in range(2):
        with pytest.raises(DatasetError, match="no list 'images'"):
            load_dataset(*data)
    assert not list(cache.folder().glob("*.npz"))


def test_damage_in_a_zips_directory_or_an_arrays_shape_is_damage(parsed, data):
    """Of a shape that is too small the rest would not be read, and so no checksum be compared."""
    first = load_dataset(*data)
    (file,) = cache.folder().glob("*.npz")
    whole = file.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for at in range(directory, directory + 46):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :])
        assert_same(load_dataset(*data), first)
    many = np.arange(100_000)
    with open(file, "wb") as out:
        np.savez(out, many=many, others=np.frombuffer(b"[]", np.uint8))
    assert np.array_equal(cache._read(file)[0]["many"], many)
    file.write_bytes(file.read_bytes().replace(b"(100000,)", b"(000000,)"))
    assert cache._read(file) is None


def test_a_file_that_changes_while_it_is_parsed_is_not_kept(parsed, data, monkeypatch):
    whole, read = data[0].read_bytes(), coco.read_annotations

    def changed(*files):
        content = read_content(data[0])
        content["annotations"].pop()
        write_content(data[0].parent, content)
        return read(*files)

    with monkeypatch.context() as patch:
        patch.setattr(coco, "read_annotations", changed)
        boxes = len(load_dataset(*data).labels)
    data[0].write_bytes(whole)
    assert len(load_dataset(*data).labels) == boxes + 1


@pytest.mark.parametrize("error", [NotImplementedError("no support for flock"), PermissionError()])
def test_a_folder_without_locks_or_that_may_not_be_written_is_read(parsed, data, monkeypatch, error):
    def acquire(lock):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(cache.filelock.FileLock, "acquire", acquire)
        assert len(load_dataset(*data)) == 6 and not list(cache.folder().glob("*.npz"))
    load_dataset(*data)
    monkeypatch.setattr(cache.filelock.FileLock, "acquire", acquire)
    assert len(load_dataset(*data)) == 6 and len(parsed) == 2
