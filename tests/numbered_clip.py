"""A video whose frames say which they are: eight dark or bright blocks are the bits of a frame's number."""

from fractions import Fraction

import av
import numpy as np

BLOCK = 8


def pixels(number, size=(96, 64)):
    """HWC uint8 BGR: the number in the first row of blocks; below, a red square moves to the right."""
    width, height = size
    image = np.full((height, width, 3), 60, np.uint8)
    noise = np.random.default_rng(number).integers(40, 80, (height - 44, width, 1), np.uint8)
    image[44:] = noise  # so that no frame costs almost nothing
    for bit in range(8):
        image[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 235 if number >> bit & 1 else 16
    left = number % (width - 16)
    image[24:40, left : left + 16] = (40, 40, 230)
    return image


def number_of(image):
    """What `pixels` was called with."""
    return sum(1 << bit for bit in range(8) if image[2:6, bit * BLOCK + 2 : bit * BLOCK + 6].mean() > 125)


def write_clip(path, frames=30, rate=10, size=(96, 64), codec="libx264", times=None, **options):
    """times: of the frames, in ticks of 1/rate. options: of the container, such as movflags."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate, bit_rate=1_000_000)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(pixels(number, size), "bgr24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path, share):
    """Keep this share of the file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
