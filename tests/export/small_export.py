"""What the tests export: a confident detector of few channels, for images of 128x160."""

from __future__ import annotations

from frcnn.config import DataConfig

SIZE = (128, 160)
DATA = DataConfig(size=(160, 128))
