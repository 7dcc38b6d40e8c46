"""Detection in a video: a line and an annotated frame for each frame, whatever becomes of the video."""

import itertools
import json
import os
import signal
import sys
from dataclasses import replace

import av
import numpy as np
import pytest
from numbered_clip import cut, number_of, write_clip
from quarter_finder import Model

from frcnn import cli
from frcnn.engine import detect_video as module
from frcnn.engine.detect_video import detect_video
from frcnn.engine.interrupt import Interrupted
from frcnn.inference.video import video
from frcnn.read_image import ImageError


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def described(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        size = stream.width, stream.height
        return stream.codec_context.name, size, stream.average_rate, sum(1 for _ in container.decode(stream))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_frame_has_a_line_and_is_drawn(clip, out, batch_size):
    result = detect_video(Model(), clip, out, batch_size=batch_size)
    lines = lines_of(result.lines)
    assert [line["frame"] for line in lines] == list(range(30))
    assert [line["time"] for line in lines] == pytest.approx([n / 10 for n in range(30)])
    found = {"label": 1, "name": "b", "score": pytest.approx(0.9), "box": [0, 0, 48, 32]}
    assert lines[7] == {"frame": 7, "time": pytest.approx(0.7), "detections": [found]}
    assert result.video == out / "clip.mp4" and result.frames == result.boxes == 30 and result.error is None
    assert described(result.video) == ("h264", (96, 64), 10, 30)
    drawn, plain = list(video(result.video)), list(video(clip))
    assert [frame.time for frame in drawn] == pytest.approx([frame.time for frame in plain], abs=1e-4)
    changed = np.abs(drawn[7].astype(int) - plain[7]).max(axis=2) > 60
    assert changed[30:34, 46:50].any() and not changed[40:, 60:].any()  # the box's corner alone
    assert sorted(path.name for path in out.iterdir()) == ["clip.jsonl", "clip.mp4"]


@pytest.mark.parametrize("size", [(95, 64), (96, 63), (95, 63)])
def test_odd_sizes_stay(tmp_path, out, size):
    clip = write_clip(tmp_path / "clip.mkv", frames=4, size=size, codec="ffv1")
    assert described(detect_video(Model(), clip, out).video)[1] == size


def test_times_between_frames_stay(tmp_path, out):
    times = [0, 1, 5, 6, 20]
    result = detect_video(Model(), write_clip(tmp_path / "clip.mkv", frames=5, times=times), out)
    assert [round(frame.time, 2) for frame in video(result.video)] == [t / 10 for t in times]


def test_without_an_encoder_of_h264_it_is_mpeg4(clip, out, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    assert described(detect_video(Model(), clip, out).video) == ("mpeg4", (96, 64), 10, 30)


def test_a_frame_that_cannot_be_prepared_is_named(tmp_path, out):
    """Shrunk to the model's size, a sliver has no row left."""
    clip = write_clip(tmp_path / "clip.mkv", frames=3, size=(4096, 48), codec="ffv1")
    model = Model()
    model.data = replace(model.data, size=(32, 32))
    with pytest.raises(ImageError, match=r"clip\.mkv, frame 0: .*vanishes"):
        detect_video(model, clip, out)


def test_options_are_those_of_images(clip, out, tmp_path):
    assert detect_video(Model(), clip, out, min_score=0.05, classes=["a"]).boxes == 30
    result = detect_video(Model(), clip, tmp_path / "lines", draw=False)
    assert result.video is None and [p.name for p in (tmp_path / "lines").iterdir()] == ["clip.jsonl"]
    with pytest.raises(ValueError, match="no class 'x'"):
        detect_video(Model(), clip, tmp_path / "new", classes=["x"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["clip.jsonl", "clip.mp4"])
def test_nothing_is_overwritten(clip, out, name):
    out.mkdir()
    (out / name).write_text("somebody's")
    model = Model()
    with pytest.raises(ValueError, match=rf"{name}, which exists, would be overwritten: choose another"):
        detect_video(model, clip, out)
    assert model.seen == 0 and [p.read_text() for p in out.iterdir()] == ["somebody's"]
    with pytest.raises(ValueError, match="would be overwritten"):
        detect_video(model, clip, clip.parent)


def test_what_can_be_read_of_a_damaged_video_is_done(tmp_path, out):
    clip = cut(write_clip(tmp_path / "clip.mkv", frames=60), 0.6)
    result = detect_video(Model(), clip, out)
    assert "clip.mkv: cut short" in result.error and 5 < result.frames < 60
    assert described(result.video)[3] == len(lines_of(result.lines)) == result.frames


def test_results_and_frames_side_by_side(tmp_path):
    """As the page on videos has it: the detections raise what the video raises."""
    clip = cut(write_clip(tmp_path / "clip.mkv", frames=60), 0.6)
    frames, shown = itertools.tee(video(clip))
    pairs = []
    with pytest.raises(ImageError, match="cut short"):
        for found, frame in zip(Model().stream(frames), shown, strict=False):
            pairs.append((len(found), frame.number))
    assert len(pairs) > 10 and pairs == [(2, number) for number in range(len(pairs))]


def test_a_video_without_a_frame_leaves_nothing(tmp_path, out, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", movflags="faststart")
    content = clip.read_bytes()
    clip.write_bytes(content[: content.index(b"mdat") + 4])
    with pytest.raises(ImageError, match=r"clip\.mp4: "):
        detect_video(Model(), clip, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_video_that_plays(clip, out, number):
    def interrupt(seen):
        if seen == 9:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"stopped after \d+ frames; they are in .*clip\.jsonl") as caught:
        detect_video(Model(before=interrupt), clip, out)
    assert caught.value.exit_code == 128 + number
    lines = lines_of(out / "clip.jsonl")
    assert 5 < len(lines) < 30 and f"after {len(lines)} frames" in str(caught.value)
    assert [number_of(frame) // 16 for frame in video(out / "clip.mp4")] == [
        n // 16 for n in range(len(lines))
    ]


def test_an_error_of_the_model_leaves_the_lines_before(clip, out):
    def fail(seen):
        if seen == 9:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        detect_video(Model(before=fail), clip, out)
    assert len(lines_of(out / "clip.jsonl")) == 9 and [p.name for p in out.iterdir()] == ["clip.jsonl"]


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize(("limit", "draw"), [(3000, False), (60_000, True)])
def test_a_full_disk_is_named(tmp_path, out, limit, draw):
    import resource

    clip = write_clip(tmp_path / "clip.mp4", frames=150)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(OSError, match=r"File too large: .*/out'"):
            detect_video(Model(), clip, out, draw=draw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in out.iterdir()] == ["clip.jsonl"]


def test_memory_does_not_grow_with_the_video(tmp_path, out, monkeypatch):
    """Frames that were decoded, but not written yet, are a few."""
    alive, most = 0, 0

    class Counted(Model):
        def prepare(self, image, size=None, rgb=False):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().prepare(image, size, rgb)

    draw = module.Detections.draw

    def drawn(*arguments, **options):
        nonlocal alive
        alive -= 1
        return draw(*arguments, **options)

    monkeypatch.setattr(module.Detections, "draw", drawn)
    assert detect_video(Counted(), write_clip(tmp_path / "long.mp4", frames=200), out).frames == 200
    assert alive == 0 and most <= 12


def command(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(["detect", *map(str, arguments), "--model", "any.pth"])
    return caught.value.code or 0


def test_the_command(clip, out, monkeypatch, capsys, folder):
    monkeypatch.setattr("frcnn.commands.model.load_model", lambda *arguments: Model())
    assert command(clip, "--output", out) == 0
    told = capsys.readouterr().out
    assert "30 boxes in 30 frames" in told and f"video       {out / 'clip.mp4'}" in told
    assert command(clip, "--output", out) == 1
    assert "would be overwritten" in capsys.readouterr().err
    for more in (["--resume"], ["--shard", "1/2"], ["--formats", "coco"], [folder]):
        assert command(clip, *more, "--output", out) == 2
        assert f"{clip} is a video, which is done alone" in capsys.readouterr().err
    assert command(clip.parent / "absent.mp4") == 1
    assert "absent.mp4: no such file" in capsys.readouterr().err


def test_the_command_tells_a_damaged_video_and_a_missing_package(tmp_path, out, monkeypatch, capsys):
    monkeypatch.setattr("frcnn.commands.model.load_model", lambda *arguments: Model())
    clip = cut(write_clip(tmp_path / "clip.mkv", frames=60), 0.6)
    assert command(clip, "--output", out, "--no-draw") == 1
    assert f"{clip}: cut short" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "av", None)
    assert command(clip, "--output", tmp_path / "new") == 1
    error = capsys.readouterr().err
    assert "pip install av" in error and "Traceback" not in error


def test_the_command_is_stopped(clip, out, monkeypatch, capsys):
    def interrupt(seen):
        if seen == 9:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("frcnn.commands.model.load_model", lambda *arguments: Model(before=interrupt))
    assert command(clip, "--output", out) == 130
    error = capsys.readouterr().err
    assert "frames; they are in" in error and "--resume" not in error
