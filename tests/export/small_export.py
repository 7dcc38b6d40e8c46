"""What the tests export: a confident detector of few channels, for images of 128x160, and a trained one."""

from __future__ import annotations

from pathlib import Path

from frcnn.config import DataConfig

SIZE = (128, 160)
DATA = DataConfig(size=(160, 128))
TRAINED = Path(__file__).with_name("trained")
IMAGES = TRAINED / "images"
"""Of blood cells, 320x240 pixels, see TRAINED / "train.py"."""
