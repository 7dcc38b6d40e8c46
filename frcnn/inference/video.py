"""Videos, streams and webcams → frames, decoded ahead by one thread. PyAV reads them: the extra `video`."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from itertools import repeat, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frcnn.inference.stream import prepared_ahead
from frcnn.read_image import MAX_PIXELS, ImageError, is_image_address

if TYPE_CHECKING:
    from av.container import InputContainer

SUFFIXES = frozenset(".avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ts .webm .wmv".split())
STREAMS = ("http://", "https://", "rtsp://")
CAMERA = "/dev/video"
TIMEOUT = 30.0
"""Seconds that a stream may take to open, and for each piece."""
SLACK = 0.25
"""Seconds by which a whole video may be shorter than it says."""


class Frame(np.ndarray):
    """A frame of a video, HWC uint8 BGR, upright. time: seconds since the first; number: counted from 0."""

    time: float
    number: int

    def __array_finalize__(self, of: Any) -> None:
        self.time, self.number = getattr(of, "time", 0.0), getattr(of, "number", 0)


def is_video(source: str | Path) -> bool:
    """By its suffix; an address (http, https, rtsp) and a camera's device (/dev/video0) always are."""
    text = str(source).lower()
    return is_stream(source) or text.startswith(CAMERA) or Path(text).suffix in SUFFIXES


def is_stream(source: str | Path) -> bool:
    """Whether it is an address, other than an image's."""
    return str(source).lower().startswith(STREAMS) and not is_image_address(source)


def video(source: str | Path, ahead: int = 8) -> Generator[Frame, None, None]:
    """The frames of a video file, of a stream (http, https, rtsp) or of a webcam (/dev/video0), in order.

    One thread decodes at most `ahead` frames that are not taken yet. None is left out: a live source falls
    behind where its reader is slower. Raises, at once, FileNotFoundError, ImportError without PyAV, and
    ImageError for what is no video; while it is iterated, ImageError where no more can be decoded, after the
    frames before, or where a file ends earlier than its header says.
    """
    return frames_of(open_video(source), source, ahead)


def open_video(source: str | Path) -> InputContainer:
    """Raises what `video` raises at once."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f"{source}: videos need the package av: pip install av, or frcnn with its extra video ({error})"
        ) from None
    address, live = str(source), is_stream(source)
    if not live:
        address = os.path.abspath(address)  # nothing in it is a protocol's name
        if not os.path.exists(address):
            raise FileNotFoundError(f"no such video: {source}")
    # a playlist in a file may point to nothing on the network, one on the network to no file
    options = {"protocol_whitelist": "http,https,rtsp,rtp,udp,tcp,tls,crypto" if live else "file"}
    if address.lower().startswith("rtsp"):  # by UDP, what comes while the model computes would be lost
        options["rtsp_flags"] = "prefer_tcp"
    kind = "v4l2" if address.startswith(CAMERA) else None
    try:
        container = av.open(address, format=kind, timeout=TIMEOUT, options=options)
        if not container.streams.video:
            raise ValueError("nothing to see in it")
        _check_pixels(container.streams.video[0])
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{source} is no video, or a damaged one ({reason})") from None
    return container


def _check_pixels(frame: Any) -> None:
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(f"{frame.width}x{frame.height} are more than {MAX_PIXELS} pixels")


def frames_of(container: InputContainer, source: str | Path, ahead: int = 8) -> Generator[Frame, None, None]:
    """`video` of what is open; closes it."""
    decoder = _decoded(container, source)
    decoded = prepared_ahead(repeat(decoder), lambda frames: next(frames, None), 1, ahead)
    with closing(decoder), closing(decoded):
        yield from takewhile(lambda frame: frame is not None, decoded)


def _decoded(container: InputContainer, source: str | Path) -> Generator[Frame, None, None]:
    import av

    first, end, count, whole = None, 0.0, 0, 0.0
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    frames: Any = container.decode(stream)  # a generator, whatever its type says
    # a camera's frames lie in memory that goes with it: none may outlive the container
    with container, closing(frames):
        step = float(1 / (stream.average_rate or 25))
        try:
            for frame in frames:
                _check_pixels(frame)
                first = (frame.time or 0.0) if first is None else first
                pixels = np.rot90(frame.to_ndarray(format="bgr24"), frame.rotation // 90)
                is_its_own = frame.format.name == "bgr24"
                shown = np.array(pixels, order="C", copy=is_its_own or None).view(Frame)
                shown.time, shown.number = end if frame.time is None else frame.time - first, count
                length = frame.duration * frame.time_base if frame.duration and frame.time_base else step
                end, count = shown.time + float(length), count + 1
                del frame, pixels
                yield shown
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{source}: after {count} frames it cannot be decoded ({reason})") from None
        if {"mp4", "matroska"}.isdisjoint(container.format.name.split(",")):
            return  # others do not say how long they are: what FFmpeg has is a guess
        if stream.duration and stream.time_base:
            whole = float(stream.duration * stream.time_base)
        elif container.duration and len(container.streams) == 1:  # else a sound may be what is longer
            whole = container.duration / av.time_base
        if end < whole - SLACK:
            raise ImageError(f"{source}: cut short: {count} frames, {end:.2f} of {whole:.2f} s")
