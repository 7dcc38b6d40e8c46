"""Frames of videos: all of them, in order, at their times, and never many at once."""

import functools
import http.server
import struct
import sys
import threading
import time

import av
import numpy as np
import pytest
from numbered_clip import cut, number_of, pixels, write_clip

import frcnn
from frcnn.inference import video as module
from frcnn.read_image import ImageError


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".webm"])
def test_frames_come_whole_and_in_order(tmp_path, suffix):
    codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(suffix, "libx264")
    frames = list(frcnn.video(write_clip(tmp_path / f"clip{suffix}", codec=codec)))
    assert [number_of(frame) for frame in frames] == [frame.number for frame in frames] == list(range(30))
    assert [frame.time for frame in frames] == pytest.approx([n / 10 for n in range(30)], abs=0.002)
    assert frames[3].shape == (64, 96, 3) and frames[3].dtype == np.uint8
    assert np.abs(frames[3].astype(int) - pixels(3)).mean() < 6  # BGR, but for what the codec loses


def test_times_are_those_of_the_file_and_not_counted(tmp_path):
    times = [0, 1, 5, 6, 20]
    clip = write_clip(tmp_path / "clip.mkv", frames=5, times=times)
    assert [round(frame.time, 2) for frame in frcnn.video(clip)] == [t / 10 for t in times]


def test_a_frame_is_an_array_that_knows_its_time(tmp_path):
    frame = list(frcnn.video(write_clip(tmp_path / "clip.mp4", frames=3)))[2]
    part = frame[:10].copy()
    assert (part.time, part.number) == (0.2, 2) and frame.mean() > 0


def test_a_turned_video_comes_upright(tmp_path):
    """As telephones write it: the header says that the frames are to be turned clockwise."""
    clip = write_clip(tmp_path / "clip.mp4", frames=2)
    content = clip.read_bytes()
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)
    start = content.index(plain, content.index(b"tkhd"))
    clip.write_bytes(content[:start] + clockwise + content[start + len(plain) :])
    frame = next(frcnn.video(clip))
    assert frame.shape == (96, 64, 3) and number_of(np.rot90(frame)) == 0
    assert np.abs(frame.astype(int) - np.rot90(pixels(0), -1)).mean() < 6


def test_the_decoder_is_only_so_far_ahead(tmp_path, monkeypatch):
    decoded = 0
    inner = module._decoded

    def counted(*arguments):
        nonlocal decoded
        for frame in inner(*arguments):
            decoded += 1
            yield frame

    monkeypatch.setattr(module, "_decoded", counted)
    most = 0
    for taken, _ in enumerate(frcnn.video(write_clip(tmp_path / "clip.mp4", frames=200), ahead=5), 1):
        time.sleep(0.002)
        most = max(most, decoded - taken)
    assert decoded == 200 and 1 <= most <= 5


def test_a_reader_that_stops_leaves_no_thread_and_no_open_file(tmp_path, monkeypatch):
    opened = []
    inner = module.open_video
    monkeypatch.setattr(module, "open_video", lambda source: opened.append(inner(source)) or opened[-1])
    frames = frcnn.video(write_clip(tmp_path / "clip.mp4", frames=100))
    next(frames)
    frames.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prepare")]
    with pytest.raises(AssertionError, match="Container is not open"):
        next(opened[0].demux())


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".mkv", {})])
def test_a_file_that_was_cut_is_told_behind_its_frames(tmp_path, suffix, options):
    clip = cut(write_clip(tmp_path / f"clip{suffix}", frames=60, **options), 0.6)
    read = []
    with pytest.raises(ImageError, match=rf"clip{suffix}: (cut short: \d+ frames|after \d+ frames)"):
        for frame in frcnn.video(clip):
            read.append(number_of(frame))
    # of the last few, one that the others are predicted from may be lost
    assert 10 < len(read) < 60 and read == sorted({*read}) and read[:-5] == list(range(len(read) - 5))


def test_a_format_that_does_not_say_its_length_ends_where_it_ends(tmp_path):
    clip = cut(write_clip(tmp_path / "clip.ts", frames=60), 0.6)
    assert 10 < len(list(frcnn.video(clip))) < 60


def test_frames_of_too_many_pixels_are_named(tmp_path, monkeypatch):
    """A header of some bytes can ask for gigabytes; a stream may change its frames' size on the way."""
    clip = write_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(module, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(ImageError, match=r"clip\.mp4 is no video, .*\(96x64 are more than 6143 pixels\)"):
        frcnn.video(clip)
    monkeypatch.setattr(module, "MAX_PIXELS", 96 * 64)
    frames = frcnn.video(clip)
    monkeypatch.setattr(module, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(ImageError, match=r"clip\.mp4.*96x64 are more than 6143 pixels"):
        list(frames)


def test_what_is_no_video_is_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no such video: .*absent\.mp4"):
        frcnn.video(tmp_path / "absent.mp4")
    page = tmp_path / "page.mp4"
    page.write_text("<html>")
    with pytest.raises(ImageError, match=r"page\.mp4 is no video, or a damaged one"):
        frcnn.video(page)
    with pytest.raises(ImageError, match="is no video"):  # without its index, which is at the end
        frcnn.video(cut(write_clip(tmp_path / "clip.mp4"), 0.5))
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", 8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ImageError, match="nothing to see in it"):
        frcnn.video(tmp_path / "sound.wav")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"videos need the package av: pip install av, .* extra video"):
        frcnn.video(page)


@pytest.fixture
def server(tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_stream_over_http(tmp_path, server):
    write_clip(tmp_path / "clip.ts")
    assert [number_of(frame) for frame in frcnn.video(f"{server}/clip.ts")] == list(range(30))
    with pytest.raises(ImageError, match=r"http://.*/absent\.ts is no video"):
        frcnn.video(f"{server}/absent.ts")


def test_a_playlist_in_a_file_does_not_reach_the_network(tmp_path, server):
    write_clip(tmp_path / "clip.ts")
    entry = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{server}/clip.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(entry)
    assert len(list(frcnn.video(f"{server}/list.m3u8"))) == 30
    with pytest.raises(ImageError, match=r"list\.m3u8 "):
        list(frcnn.video(tmp_path / "list.m3u8"))


@pytest.mark.parametrize(
    ("source", "so"),
    [
        ("a.mp4", True),
        ("A.MOV", True),
        ("rtsp://camera/1", True),
        ("https://site/live", True),
        ("/dev/video0", True),
        ("a.jpg", False),
        ("a.gif", False),
        ("folder", False),
    ],
)
def test_what_counts_as_a_video(source, so):
    assert module.is_video(source) == so
