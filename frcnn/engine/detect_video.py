"""Detection in a video: an annotated video, and the detections line by line."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from frcnn.checked import check_known
from frcnn.engine.detect import AHEAD, check_options
from frcnn.engine.interrupt import Interrupted, StopRequest
from frcnn.files import replacing
from frcnn.inference.stream import Predictor, prepared_ahead
from frcnn.inference.video import Frame, frames_of, is_stream, open_video
from frcnn.preprocess import Prepared
from frcnn.read_image import ImageError
from frcnn.structures import Detections

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""The first that PyAV was built with writes the annotated video: H.264 but for the last."""
TICK = Fraction(1, 60_000)
"""Seconds: the unit of time of the annotated video. mpeg4 takes none below 1 of 65535."""


@dataclass(frozen=True)
class VideoResult:
    """lines, video: the files, the latter if it was drawn. frames: how many were done. boxes: how many are
    listed. error: why the rest of a damaged video is missing."""

    lines: Path
    video: Path | None
    frames: int
    boxes: int
    error: str | None

    def tell(self) -> int:
        """Print it; the exit code of `frcnn detect`."""
        print(f"{self.boxes} boxes in {self.frames} frames\ndetections  {self.lines}")
        if self.video is not None:
            print(f"video       {self.video}")
        if self.error is not None:
            print(self.error, file=sys.stderr)
        return 1 if self.error else 0


def detect_video(
    model: Predictor,
    source: str | Path,
    output: str | Path,
    *,
    min_score: float = 0.3,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    draw: bool = True,
    classes: Sequence[str] = (),
) -> VideoResult:
    """Detect objects in a video, stream or webcam, as `frcnn.video` takes it; options as in `detect`.

    `output` receives NAME.jsonl, a line {"frame", "time", "detections"} for each frame as it is done (counted
    from 0, in seconds since the first); and, with `draw`, NAME.mp4, the annotated frames in their size and at
    their times, without sound. NAME is the source's, without its suffix. SIGINT and SIGTERM end it after the
    present frames, whose video is whole; so is that of what could be read of a damaged one.

    Raises ValueError before any work for options out of range and where a file would be overwritten, what
    `frcnn.video` raises at once, ImageError where no frame can be read, OSError where something cannot be
    written, and `Interrupted`.
    """
    check_options(min_score, size, batch_size)
    model.check_size(size)
    check_known("class", classes, model.class_names)
    place = urlsplit(str(source)).path if is_stream(source) else source
    name = re.sub(r"[^\w.-]", "_", Path(place).stem) or "stream"
    lines, drawn = Path(output, f"{name}.jsonl"), Path(output, f"{name}.mp4")
    for path in (lines, *([drawn] if draw else [])):
        if os.path.lexists(path):
            raise ValueError(f"{path}, which exists, would be overwritten: choose another output folder")
    container = open_video(source)
    of_source = container.streams.video[0]
    total, rate = of_source.frames or None, of_source.average_rate or Fraction(25)
    lines.parent.mkdir(parents=True, exist_ok=True)
    boxes: list[int] = []
    error = None
    frames = frames_of(container, source)

    def read(frame: Frame) -> tuple[Prepared, Frame]:
        try:
            return model.prepare(frame, size), frame
        except ImageError as error:
            raise ImageError(f"{source}, frame {frame.number}: {error}") from None

    results = model.results(frames, read, batch_size)
    stopping = StopRequest("this frame", "at once; the lines of the frames before are kept")
    writing = _annotated(drawn, rate) if draw else nullcontext(lambda frame, pixels: None)
    with (
        _naming(lines.parent),
        stopping as stop,
        closing(frames),
        closing(results),
        writing as encode,
        open(lines, "x") as file,
    ):

        def write(result: tuple[Frame, Detections | None]) -> None:
            frame, found = result
            assert found is not None  # what is read is an image, or raises
            found = found.above(min_score)
            found = found.of(*classes) if classes else found
            entry = {"frame": frame.number, "time": frame.time, "detections": found.to_json()}
            file.write(json.dumps(entry) + "\n")
            file.flush()
            encode(frame, found.draw(frame, 0) if draw else frame)
            boxes.append(len(found))

        try:  # one thread draws and encodes, so that the model does not wait for it
            with closing(prepared_ahead(results, write, 1, AHEAD)) as written:
                for _ in tqdm(written, total=total, desc="detecting", unit="frame", disable=None):
                    if stop.requested:
                        break
        except ImageError as damage:
            error = str(damage)
        if not boxes:
            lines.unlink()
            raise ImageError(error or f"{source} has no frames")
    if stop.requested:
        raise Interrupted(f"stopped after {len(boxes)} frames; they are in {lines}", stop.number)
    return VideoResult(lines, drawn if draw else None, len(boxes), sum(boxes), error)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a full disk's names no file
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None


@contextmanager
def _annotated(path: Path, rate: Fraction) -> Iterator[Callable[[Frame, np.ndarray], None]]:
    """What adds a frame, drawn on, to a video, which is there, whole, when the block has ended."""
    import av

    codec = next(name for name in ENCODERS if name in av.codecs_available)
    with replacing(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate)
        last = -1

        def encode(frame: Frame, pixels: np.ndarray) -> None:
            nonlocal last
            if last < 0:
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv444p" if stream.width % 2 or stream.height % 2 else "yuv420p"
                stream.codec_context.time_base = TICK
            shown = av.VideoFrame.from_ndarray(pixels, "bgr24")
            shown.pts = last = max(last + 1, round(frame.time / TICK))  # a live one's may stand still
            shown.time_base, shown.duration = TICK, round(1 / rate / TICK)
            container.mux(stream.encode(shown))

        yield encode
        container.mux(stream.encode(None))
