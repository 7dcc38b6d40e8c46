"""Training's options are checked before any work."""

from dataclasses import replace

import pytest
import torch

import frcnn
from frcnn.engine import train as train_module
from frcnn.engine.train import train
from frcnn.inference.hardware import resolve_device


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epochs", 0, "epochs=0: it is a whole number, 1 or more"),
        ("batch_size", 0, "batch_size=0: it is a whole number, 1 or more"),
        ("batch_size", 2.5, "batch_size=2.5: it is a whole number"),
        ("log_every", 0, "log_every=0"),
        ("eval_every", 0, "eval_every=0"),
        ("save_every", -1, "save_every=-1"),
        ("save_every", True, "save_every=True"),
        ("workers", -1, "workers=-1: it is a whole number, 0 to"),
        ("workers", 100_000, "workers=100000: it is a whole number, 0 to"),
        ("seed", -1, "seed=-1: it is a whole number, 0 to 9223372036854775807"),
        ("seed", 2**63, "seed=9223372036854775808"),
        ("timeout", 0, "timeout=0: it is a number of seconds above 0"),
        ("timeout", float("nan"), "timeout=nan"),
        ("max_bad_images", 1.5, "max_bad_images=1.5: it is a share of the training images, 0 to 1"),
        ("max_bad_images", float("nan"), "max_bad_images=nan"),
        ("precision", "float8", "unknown precision 'float8': choose one of float32, tf32, bfloat16, float16"),
        ("reinit_heads", True, "reinit_heads=True leaves out .* there is no checkpoint"),
        ("mode", "fast", "unknown mode 'fast': choose one of eager, graph"),
        ("device", "gpu", "no device 'gpu': this machine has cpu"),
        ("device", "cuda:99", "no device 'cuda:99': this machine has cpu"),
    ],
)
def test_options_out_of_their_range(recipe, tiny, tmp_path, monkeypatch, option, value, message):
    monkeypatch.setattr(train_module, "load_datasets", lambda *arguments: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match=message):
        train(recipe, *tiny, work_dir=tmp_path / "run", **{option: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_precision_is_refused_where_it_would_be_slow(recipe, tiny, tmp_path, monkeypatch, precision):
    monkeypatch.setattr("frcnn.inference.hardware.cpu_computes", lambda precision: False)
    with pytest.raises(ValueError, match=rf"has no {precision} arithmetic .*use precision=float32$"):
        train(recipe, *tiny, work_dir=tmp_path / "run", device="cpu", precision=precision)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (
            {"patience": 2},
            {},
            r"schedule\.patience works on evaluations: name val_annotations",
        ),
        ({"ema": 0.9}, {}, r"schedule\.ema works on evaluations"),
        (
            {},
            {"callbacks": [print]},
            "callbacks are a list of objects of classes derived from frcnn",
        ),
        ({}, {"callbacks": frcnn.Callback()}, "callbacks are a list"),
        ({}, {"callbacks": [frcnn.Callback]}, "callbacks are a list"),
        ({}, {"val": "a.json"}, "val=str: frcnn.load_dataset or frcnn.data.combine returns it"),
    ],
)
def test_what_would_do_nothing_or_fail_late_is_refused(recipe, tiny, tmp_path, schedule, options, message):
    changed = replace(recipe, schedule=replace(recipe.schedule, **schedule))
    with pytest.raises(ValueError, match=message):
        train(changed, *tiny, work_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_devices():
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="no device 'nonsense'"):
        frcnn.build("small_r18_fpn", device="nonsense")
