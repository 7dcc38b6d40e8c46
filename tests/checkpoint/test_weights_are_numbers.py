"""Legitimate files load whatever their form; weights that are no finite real numbers are named.

A load that fails leaves the model as it was.
"""

from __future__ import annotations

import warnings
from collections import defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import frcnn
from frcnn.checkpoint.convert import convert
from frcnn.checkpoint.load import CheckpointError, load_checkpoint, read_checkpoint
from frcnn.checkpoint.pretrained import load_backbone
from frcnn.checkpoint.torch_file import Span

NAME = "rpn_head.rpn_conv.weight"
VARIANCE = "backbone.bn1.running_var"


@pytest.fixture
def model(small_recipe):
    return frcnn.build(small_recipe)


@pytest.fixture
def state(small_recipe):
    return frcnn.build(small_recipe).state_dict()


@pytest.fixture
def reads(monkeypatch):
    """Sizes of what is read from files."""
    sizes = []
    original = Span.read
    monkeypatch.setattr(Span, "read", lambda self, file: sizes.append(self.size) or original(self, file))
    return sizes


def unchanged(model, load) -> str:
    """The message of the CheckpointError that ``load`` raises; not a bit of the model is another after it."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return str(caught.value)


def same(model, state) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_thousand_views_read_their_storage_once_and_share_memory(zipped, tmp_path, reads):
    buffer = torch.arange(1_000_000.0)
    views = {str(index): buffer[index:].view(-1)[:100] for index in range(1000)}
    torch.save(views | {"whole": buffer}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    tensors = read_checkpoint(tmp_path / "a.pth").tensors
    assert reads.count(4_000_000) == 1 and sum(reads) < 4_200_000
    assert all(torch.equal(tensors[name], view) for name, view in views.items())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 1


def test_weights_that_are_parts_of_one_buffer_load(model, state, tmp_path):
    flat = torch.cat([value.flatten().float() for value in state.values()])
    parts = flat.split([value.numel() for value in state.values()])
    views = {name: part.view(value.shape) for (name, value), part in zip(state.items(), parts, strict=True)}
    torch.save(views, tmp_path / "a.pth")
    load_checkpoint(model, tmp_path / "a.pth")
    assert same(model, state)


def test_expanded_weights_load(model, state, tmp_path):
    state[VARIANCE] = torch.tensor(2.0).expand(64)
    torch.save(state, tmp_path / "a.pth")
    load_checkpoint(model, tmp_path / "a.pth")
    assert same(model, state)


def test_a_file_without_checksums_loads(model, state, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    load_checkpoint(model, tmp_path / "a.pth")
    assert same(model, state)


def test_what_training_programs_keep_beside_the_weights(model, state, tmp_path):
    hub = defaultdict(list, loss=[np.float32(0.5), np.int64(3)], rates=[np.arange(3.0)])
    content = {
        "state_dict": state,
        "message_hub": hub,
        "seen": {1, 2},
        (0, "key"): None,
        0.5: torch.device("cpu"),
    }
    torch.save(content, tmp_path / "a.pth")
    load_checkpoint(model, tmp_path / "a.pth")
    assert same(model, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(dtype, model, state, tmp_path):
    torch.save({n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}, tmp_path / "a.pth")
    load_checkpoint(model, tmp_path / "a.pth")
    assert torch.equal(model.state_dict()[NAME], state[NAME].to(dtype).float())


def spoilt(value: torch.Tensor, number: float) -> torch.Tensor:
    value = value.clone()
    value.view(-1)[-1] = number
    return value


NO_NUMBERS = {
    "nan": (NAME, lambda value: spoilt(value, float("nan")), "not finite"),
    "inf": (NAME, lambda value: spoilt(value, float("-inf")), "not finite"),
    "half inf": (NAME, lambda value: spoilt(value.half(), float("inf")), "not finite"),
    "more than float32 holds": (NAME, lambda value: spoilt(value.double(), 1e200), "not finite"),
    "counter": ("backbone.bn1.num_batches_tracked", lambda _: torch.tensor(float("nan")), "not finite"),
    "negative variance": (VARIANCE, lambda value: spoilt(value, -1e-3), "negative variances"),
    "int8": (NAME, lambda value: value.to(torch.int8), "not floating-point numbers"),
    "bool": (NAME, lambda value: value.bool(), "not floating-point numbers"),
    "complex": (NAME, lambda value: value.to(torch.complex64), "not dense real numbers"),
    "sparse": (NAME, lambda value: value.to_sparse(), "not dense real numbers"),
    "quantized": (
        NAME,
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        "not dense real numbers",
    ),
    "meta": (NAME, lambda value: value.to("meta"), "not dense real numbers"),
}


@pytest.mark.filterwarnings("ignore:.*quantize.*", "ignore:.*deprecated.*")
@pytest.mark.parametrize("source", ["file", "memory"])
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number_is_named_and_nothing_is_loaded(kind, source, model, state, small_recipe, tmp_path):
    name, change, said = NO_NUMBERS[kind]
    state[name] = change(state[name])
    given = state
    if source == "file":
        given = tmp_path / "a.pth"
        torch.save(state, given)
    message = unchanged(model, lambda: load_checkpoint(model, given))
    assert f"1 tensors are {said}: {name}" in message
    assert message.startswith(str(given) if source == "file" else "the state dict")
    with pytest.raises(CheckpointError, match=name):
        frcnn.build(small_recipe, given)
    if source == "file":
        with pytest.raises(CheckpointError, match=name):
            convert(given, tmp_path / "b.safetensors")
        assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_safetensors_are_checked_alike(model, state, tmp_path):
    state[NAME] = spoilt(state[NAME], float("nan"))
    save_file(state, tmp_path / "a.safetensors")
    assert NAME in unchanged(model, lambda: load_checkpoint(model, tmp_path / "a.safetensors"))


def test_a_backbone_is_checked_alike(model, state, tmp_path):
    state[VARIANCE] = spoilt(state[VARIANCE], float("nan"))
    torch.save(state, tmp_path / "a.pth")
    message = unchanged(model, lambda: load_backbone(model, tmp_path / "a.pth"))
    assert "1 tensors are not finite: bn1.running_var" in message and "a.pth" in message


def test_a_tensor_that_cannot_be_copied_changes_nothing(model, state):
    class Stubborn(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, kinds, arguments=(), keywords=None):
            if function in (torch.Tensor.copy_, torch.Tensor.to):
                raise RuntimeError("not to be copied")
            return super().__torch_function__(function, kinds, arguments, keywords or {})

    last = list(state)[-1]
    state[last] = state[last].as_subclass(Stubborn)
    assert last in unchanged(model, lambda: load_checkpoint(model, state))


def test_a_warning_made_an_error_changes_nothing(model, state):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="start afresh"):
            load_checkpoint(model, state, reinit_heads=True)
    assert same(model, before)


def test_memory_shared_too_often_is_refused_before_it_is_unfolded(model):
    views = {f"backbone.body.{index}": torch.zeros(1).expand(1 << 26) for index in range(3)}
    message = unchanged(model, lambda: load_checkpoint(model, views))
    assert "share 12 bytes of memory" in message


def test_a_negated_view_is_not_read_with_the_wrong_sign(tmp_path):
    negated = torch.tensor([1 + 2j]).conj().imag
    assert negated.is_neg()
    torch.save({"a": negated, "b": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="a "):
        read_checkpoint(tmp_path / "a.pth")
