"""Images that a random network finds something in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, *sizes: tuple[int, int]) -> Path:
    """Noise of (height, width), as PNGs."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate(sizes):
        small = generator.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((width, height))
        image.save(folder / f"{index}.png")
    return folder
