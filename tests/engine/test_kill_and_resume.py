"""Whatever ends a run, its folder can be resumed, and the resumed run ends as an uninterrupted one."""

import contextlib
import json
import random
import shutil
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.run_state import read_training_state
from frcnn.checkpoint.save import checksum
from frcnn.engine import run as run_module
from frcnn.engine import train as train_module

train = partial(train_module.train, device="cpu", workers=0)
OF_THE_MACHINE = {"time", "data_time", "memory"}


def log_of(folder):
    """The log's lines without what depends on the machine's speed."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in OF_THE_MACHINE} for entry in entries]


def assert_same_end(whole, parts):
    """Weights, momentum, random states, metrics and log are equal bit for bit, and nothing else is left."""
    first, second = read_training_state(whole / "last.pth"), read_training_state(parts / "last.pth")
    assert checksum(first) == checksum(second)
    assert log_of(whole) == log_of(parts)
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in parts.iterdir())


def written_since(nanoseconds, *paths):
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime_ns > nanoseconds:
                return True
    return False


@pytest.mark.stress
def test_killed_runs_end_as_uninterrupted_ones(start, tmp_path, stress, record_property):
    """Every third kill comes while a checkpoint is being written."""
    epochs = 200 if stress else 20
    options = ("--epochs", epochs, "--log-every", 2, "--save-every", 2, "--eval-every", 4)
    uninterrupted = start("whole", *options, validate=True)
    kills, in_writing = 50 if stress else 6, 0
    rng = random.Random(0)
    parts = tmp_path / "parts"
    run = None
    for kill in range(kills):
        resume = ["--resume"] if (parts / "last.pth").exists() else []
        run = start("parts", *options, *resume, validate=True, slow_step=0.02, slow_write=0.05)
        started = time.time_ns()
        # after a checkpoint, so that the run gets on
        run.wait_for(lambda started=started: written_since(started, parts / "last.pth"))
        if kill % 3 == 2:
            run.wait_for(lambda started=started: written_since(started, *parts.glob(".*.pth.tmp")))
            in_writing += 1
        else:
            run.process.join(rng.random() * 0.2)
        run.signal(signal.SIGKILL, group=True)
        run.end()
    record_property("tried", f"{kills} SIGKILLs of a training run, {in_writing} while it wrote a checkpoint")
    assert uninterrupted.end(300) == 0, uninterrupted.text()
    last = start("parts", *options, "--resume", validate=True)
    assert last.end(300) == 0, last.text()
    assert_same_end(tmp_path / "whole", parts)


@pytest.fixture
def break_off(monkeypatch):
    """``break_off(step, recipe, ...)``: a run that an error ends before that step (counted from 0)."""

    def arrange(step, *arguments, **options):
        original = run_module.learning_rate

        def learning_rate(iteration, *rest):
            if iteration == step:
                raise RuntimeError("power cut")
            return original(iteration, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(run_module, "learning_rate", learning_rate)
            with pytest.raises(RuntimeError, match="power cut"):
                train(*arguments, **options)

    return arrange


def test_log_means_go_on_where_they_were(longer, tiny, tmp_path, break_off):
    """The checkpoint lies between two log lines: the sums so far are in it."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    longer = replace(longer, schedule=replace(longer.schedule, images_per_process=1))  # 6 steps an epoch
    options = {"log_every": 4, "save_every": 3}
    train(longer, *tiny, work_dir=whole, **options)
    break_off(10, longer, *tiny, work_dir=parts, **options)
    train(longer, *tiny, work_dir=parts, resume=True, **options)
    assert_same_end(whole, parts)


def test_float16_goes_on_with_its_loss_scale(longer, tiny, tmp_path, break_off, monkeypatch):
    """Which has been halved and doubled by then; a row of finite steps is cut in two."""
    monkeypatch.setattr("frcnn.inference.hardware.cpu_computes", lambda precision: True)
    monkeypatch.setattr("frcnn.engine.loss_scale.STEPS_TO_DOUBLE", 4)
    monkeypatch.setattr("frcnn.engine.loss_scale.START", 2.0**40)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    longer = replace(longer, schedule=replace(longer.schedule, epochs=12))
    options = {"log_every": 4, "save_every": 1, "precision": "float16"}
    train(longer, *tiny, work_dir=whole, **options)
    break_off(31, longer, *tiny, work_dir=parts, **options)
    train(longer, *tiny, work_dir=parts, resume=True, **options)
    assert_same_end(whole, parts)
    lines = log_of(whole)
    assert any(line["skipped"] for line in lines) and not lines[-1]["skipped"]
    scale, _ = read_training_state(whole / "last.pth")["training"]["loss_scale"]
    assert scale < 2.0**40 and max(line["loss_scale"] for line in lines) > scale


def test_validation_lines_are_not_repeated(longer, tiny, tmp_path, monkeypatch):
    """The run ends between the line and the checkpoint that knows of the validation."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(longer, *tiny, *tiny, work_dir=whole)
    original = run_module.TrainingLog.validation

    def validation(self, *arguments):
        original(self, *arguments)
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(run_module.TrainingLog, "validation", validation)
        with pytest.raises(RuntimeError, match="power cut"):
            train(longer, *tiny, *tiny, work_dir=parts)
    assert [entry["mode"] for entry in log_of(parts)] == ["train", "val"]
    train(longer, *tiny, *tiny, work_dir=parts, resume=True)
    assert_same_end(whole, parts)


CUT = {
    "cut": b'{"mode": "train", "epo',
    "two in one": b'{"mode": "val", "epoch": 1}{"mode": "tr',
    "zeros": b"\0" * 4096,
    "no text": b"\xff\xfe",
    "deep": b"[" * 99_999,
}


def test_cut_log_lines_are_dropped(longer, tiny, tmp_path, break_off, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(longer, *tiny, work_dir=whole, log_every=1)
    break_off(10, longer, *tiny, work_dir=parts, log_every=1)
    for name, end in CUT.items():
        copy = tmp_path / name
        shutil.copytree(parts, copy)
        with open(copy / "log.jsonl", "ab") as file:
            file.write(end)
        train(longer, *tiny, work_dir=copy, log_every=1, resume=True)
        assert (
            "log.jsonl: lines that were cut off while being written, taken out: 1\n"
            in capsys.readouterr().out
        ), name
        assert_same_end(whole, copy)


def test_lines_of_others_stay_in_the_log(longer, tiny, tmp_path, break_off):
    run = tmp_path / "run"
    break_off(7, longer, *tiny, work_dir=run)
    foreign = ['{"note": "lr was too high"}', '"text"', "17", "null", '{"mode": "train"}', '{"epoch": "1"}']
    with open(run / "log.jsonl", "a") as file:
        file.writelines(f"{line}\n" for line in foreign)
    train(longer, *tiny, work_dir=run, resume=True)
    lines = (run / "log.jsonl").read_text().splitlines()
    assert lines[2:8] == foreign and len(lines) == 10


def test_a_refused_resume_changes_nothing(longer, tiny, tmp_path, break_off):
    run = tmp_path / "run"
    break_off(7, longer, *tiny, work_dir=run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = replace(longer, schedule=replace(longer.schedule, lr=0.5))
    for recipe, options in ((other, {"resume": True}), (longer, {"resume": True, "seed": 1}), (other, {})):
        with pytest.raises(CheckpointError):
            train(recipe, *tiny, work_dir=run, **options)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_temporary_files_of_killed_runs_are_cleared_away(longer, tiny, tmp_path, break_off):
    run = tmp_path / "run"
    break_off(7, longer, *tiny, *tiny, work_dir=run)
    for name in ("last.pth", "best.pth", "log.jsonl", "recipe.json"):
        (run / f".{name}.tmp").write_bytes(b"half of it")
    train(longer, *tiny, *tiny, work_dir=run, resume=True)
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_a_full_disk_leaves_a_run_that_can_be_resumed(start, tmp_path, what):
    """A limit on the size of files is a disk that is full at another place for each of them."""
    options = ("--epochs", 6, "--log-every", 1)
    whole = start("whole", *options)
    assert start("parts", "--epochs", 6, "--log-every", 1, fail_at=4).end() == 1
    parts = tmp_path / "parts"
    before = (parts / "last.pth").read_bytes()
    if what == "checkpoint":
        limit = len(before) - 1000
    else:
        limit = len(before) + 100_000
        with open(parts / "log.jsonl", "a") as file:  # foreign, so it stays
            file.write(json.dumps("x" * (limit - (parts / "log.jsonl").stat().st_size - 400)) + "\n")
    full = start("parts", *options, "--resume", file_limit=limit)
    assert full.end() == 1
    message = full.text().splitlines()[-1]
    name = "last.pth" if what == "checkpoint" else "log.jsonl"
    assert f"{parts / name} could not be written (File too large)" in message and "resume" in message
    assert "Traceback" not in full.text()
    if what == "checkpoint":
        assert (parts / "last.pth").read_bytes() == before
    assert not list(parts.glob(".*"))
    again = start("parts", *options, "--resume")
    assert again.end() == 0, again.text()
    assert whole.end() == 0
    if what == "log":
        lines = (parts / "log.jsonl").read_text().splitlines(keepends=True)
        (parts / "log.jsonl").write_text("".join(line for line in lines if not line.startswith('"x')))
    assert_same_end(tmp_path / "whole", parts)


@pytest.mark.stress
def test_flipped_bits_are_found(recipe, tiny, tmp_path, stress, record_property):
    """Or they are in the archive's frame, where they change nothing that is read."""
    run = tmp_path / "run"
    train(recipe, *tiny, work_dir=run)
    path = run / "last.pth"
    expected = checksum(read_training_state(path))
    data = path.read_bytes()
    rng = random.Random(0)
    count, harmless = 5000 if stress else 100, 0
    for _ in range(count):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            content = read_training_state(path)
        except CheckpointError as error:
            assert str(path) in str(error) and ("train anew" in str(error) or "weights=" in str(error))
        else:
            harmless += 1
            assert checksum(content) == expected
    assert harmless < count // 2
    record_property("tried", f"{count} flipped bits in last.pth, {harmless} of them without consequence")


def test_a_flipped_bit_of_a_weight_is_found(recipe, tiny, tmp_path):
    """Even where the file was written without a CRC, or the bit flipped before that was computed."""
    run = tmp_path / "run"
    torch.serialization.set_crc32_options(False)
    train(recipe, *tiny, work_dir=run)
    torch.serialization.set_crc32_options(True)
    path = run / "last.pth"
    weight = read_training_state(path)["state_dict"]["roi_head.bbox_head.fc_cls.weight"]
    data = bytearray(path.read_bytes())
    at = data.find(weight.numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"last\.pth: damaged: its checksum .*train anew$"):
        train(recipe, *tiny, work_dir=run, resume=True)


def test_another_number_of_threads_is_said(longer, tiny, tmp_path, break_off, threads, capsys):
    run = tmp_path / "run"
    break_off(7, longer, *tiny, work_dir=run)
    threads(2)
    train(longer, *tiny, work_dir=run, resume=True)
    assert "note: torch computes with 2 threads, and did with 1 before" in capsys.readouterr().out
