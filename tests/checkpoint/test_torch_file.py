"""torch.save's two formats, and what files that are damaged or something else are answered with."""

from __future__ import annotations

import io
import pickle
import random
import re
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from frcnn.checkpoint.records import Inert
from frcnn.checkpoint.torch_file import CheckpointError, Span, read_torch_file

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def tensors_of(path):
    file = read_torch_file(path)
    return file.tensors({name: entry for name, entry in file.content.value.items()})


@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor_comes_back(zipped, tmp_path):
    base = torch.arange(24.0).view(4, 6)
    content = {name: torch.ones(3, 2).to(getattr(torch, name)) for name in DTYPES}
    content |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "transposed": base.t(),
        "slice": base[1:3, 2:4],
        "same storage": base,
        "expanded": torch.ones(3, 1).expand(3, 5),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "buffer": torch.nn.parameter.Buffer(torch.randn(3)),
    }
    path = tmp_path / "file.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = tensors_of(path)
    for name, tensor in content.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


def test_reading_is_lazy(tmp_path, monkeypatch):
    path = tmp_path / "file.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}, "optimizer": torch.ones(1000)}, path)
    file = read_torch_file(path)
    sizes = []
    original = Span.read
    monkeypatch.setattr(Span, "read", lambda self, file: sizes.append(self.size) or original(self, file))
    assert torch.equal(file.tensors(file.content.value["state_dict"])["a"], torch.ones(2))
    assert sizes == [8]


@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncation_is_an_error(zipped, tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"state_dict": {"a": torch.ones(100)}}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for length in range(0, len(data) - 1, max(1, len(data) // 60)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=str(path)):
            file = read_torch_file(path)
            file.tensors(file.content.value["state_dict"])


@pytest.mark.parametrize(
    "form, kept, said",
    [
        ("zip", 0.5, "its end, which lists what it holds, is missing"),
        ("legacy", 0.9, r"\d+ bytes are missing at the end"),
        ("legacy", 0.004, r"it ends in the middle of (a pickle|an object)"),
        ("plain", 0.5, "it ends in the middle of an object"),
        ("plain", 0.001, r"it ends in the middle of (a pickle|an object)"),
        ("plain", 0, "it is empty"),
    ],
)
def test_a_file_cut_short_is_called_so_with_a_remedy(form, kept, said, tmp_path):
    path = tmp_path / "file.pth"
    if form == "plain":
        path.write_bytes(pickle.dumps({"a": np.ones(10_000)}))
    else:
        torch.save({"a": torch.ones(10_000)}, path, _use_new_zipfile_serialization=form == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError) as caught:
        tensors_of(path)
    assert re.fullmatch(
        rf"{re.escape(str(path))}: cut short \({said}\); download or copy it again", str(caught.value)
    )


@pytest.mark.parametrize("data", [b"\x80\x02}K\x01u.", b"(K\x01d.", b"\x80\x02]\x97."])
def test_a_damaged_pickle_is_called_so_once_with_a_remedy(data, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    said = str(caught.value).removeprefix(f"{path}: ")
    assert said.startswith("damaged or incomplete (") and said.endswith("); download or copy it again")
    assert len(re.findall("damaged|incomplete|whole", said)) == 2


def test_the_whole_content_is_what_torch_reads(tmp_path):
    shared, tensor = ["a", (1, None)], torch.arange(6.0).view(2, 3).t()
    content = {
        "tensors": [tensor, tensor],
        3: (shared, shared),
        "left": OrderedDict(a=True, b=-(2**70), c=0.5),
    }
    torch.save(content, tmp_path / "file.pth")
    read = read_torch_file(tmp_path / "file.pth").whole()
    first, second = read.pop("tensors")
    assert torch.equal(first, tensor) and first.stride() == tensor.stride() and first is second
    assert read == {3: (shared, shared), "left": {"a": True, "b": -(2**70), "c": 0.5}}


@pytest.mark.parametrize(
    "value, said",
    [
        (random.Random(0), "an object of random.Random"),
        ([torch.ones(10**6)] * 20, "far larger than the file"),
    ],
)
def test_objects_and_what_unfolds_are_no_whole_content(value, said, tmp_path):
    torch.save(value, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=f"file.pth: .*{said}"):
        read_torch_file(tmp_path / "file.pth").whole()


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"a": torch.ones(1000)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x00\x00\x80\x3f" * 8) + 64] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        tensors_of(path)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html><title>404</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 300, "tar archive"),
        (b"\x89PNG\r\n", "not a checkpoint"),
        (b"\x80\x04K\x05.", None),
    ],
)
def test_other_files_are_named_for_what_they_are(content, said, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    if said is None:
        assert read_torch_file(path).content.value == 5
        return
    with pytest.raises(CheckpointError, match=said) as caught:
        read_torch_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_torch_file(tmp_path / "absent.pth")


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "script.pth"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_torch_file(path)


def test_another_zip_is_refused(tmp_path):
    path = tmp_path / "archive.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="a zip file, but not"):
        read_torch_file(path)


class Reference:
    """Stands for a storage in `crafted`."""


class Tensor:
    """Pickles as a call of torch's tensor builder with arguments of our choice."""

    def __init__(self, offset, shape, stride) -> None:
        self.arguments = (Reference(), offset, shape, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def crafted(path, tensor, numel=4, data=b"\x00" * 16, compression=zipfile.ZIP_STORED) -> None:
    """A zip file like torch.save's, but with lies in it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, entry):
            if isinstance(entry, Reference):
                return ("storage", torch.FloatStorage, "0", "cpu", numel)
            return None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"a": tensor})
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", buffer.getvalue())
        archive.writestr("x/data/0", data)


def test_a_crafted_file_without_lies_is_read(tmp_path):
    crafted(tmp_path / "a.pth", Tensor(0, (2, 2), (2, 1)))
    assert torch.equal(tensors_of(tmp_path / "a.pth")["a"], torch.zeros(2, 2))


@pytest.mark.parametrize(
    "offset, shape, stride",
    [
        (0, (5,), (1,)),
        (1, (2, 2), (2, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2, -2), (2, 1)),
        (0, (10**6, 10**6), (0, 0)),
        (0, (2, 2), (2**62, 1)),
        (0, (2**40,), (1,)),
        (0, (2, 2), (1,)),
        (0, (2.5,), (1,)),
        (0, "22", (2, 1)),
        (None, (2, 2), (2, 1)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(offset, shape, stride, tmp_path):
    crafted(tmp_path / "a.pth", Tensor(offset, shape, stride))
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        tensors_of(tmp_path / "a.pth")


@pytest.mark.parametrize("numel", [3, 5, 2**40])
def test_a_storage_of_another_length_is_refused(numel, tmp_path):
    crafted(tmp_path / "a.pth", Tensor(0, (2,), (1,)), numel=numel)
    with pytest.raises(CheckpointError):
        tensors_of(tmp_path / "a.pth")


def test_a_storage_of_negative_length_is_no_storage(tmp_path):
    crafted(tmp_path / "a.pth", Tensor(0, (2,), (1,)), numel=-1)
    assert isinstance(read_torch_file(tmp_path / "a.pth").content.value["a"], Inert)


def test_compressed_members_are_refused(tmp_path):
    crafted(
        tmp_path / "a.pth",
        Tensor(0, (10**6,), (1,)),
        numel=10**6,
        data=bytes(4 * 10**6),
        compression=zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(CheckpointError, match="compressed"):
        tensors_of(tmp_path / "a.pth")


def test_a_missing_storage_is_refused(tmp_path):
    crafted(tmp_path / "a.pth", Tensor(0, (2,), (1,)))
    with zipfile.ZipFile(tmp_path / "a.pth") as archive, zipfile.ZipFile(tmp_path / "b.pth", "w") as other:
        other.writestr("x/data.pkl", archive.read("x/data.pkl"))
    with pytest.raises(CheckpointError, match="damaged"):
        tensors_of(tmp_path / "b.pth")
