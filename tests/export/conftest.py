"""A model to export, images to certify it on, and files that are written once for a module."""

from __future__ import annotations

import pytest
from confident_detector import SMALL, confident
from noise_images import write_images
from small_export import DATA, SIZE, TRAINED

import frcnn
from frcnn.export.export import export


@pytest.fixture(scope="module")
def slim():
    """Few channels: what exporters do takes less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frcnn.backbone.STAGE_CHANNELS", (16, 32, 64, 128))
        yield


@pytest.fixture(scope="module")
def model(slim):
    return confident(SMALL, DATA)


@pytest.fixture(scope="module")
def trained():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frcnn.backbone.STAGE_CHANNELS", (8, 16, 32, 64))
        yield frcnn.load(TRAINED / "model.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "some", (120, 150), (150, 120), (60, 75))


@pytest.fixture(scope="module")
def exported(model, images, tmp_path_factory):
    """`exported(name, **options)`: the file, written once, and its certificate."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def make(name, **options):
        if name not in done:
            done[name] = folder / name, export(model, folder / name, [images], size=SIZE, **options)
        return done[name]

    return make
