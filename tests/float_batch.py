"""Images as a batch in float32, normalized on the host, as training has them."""

from frcnn.preprocess import normalize, pad, prepare
from frcnn.structures import Batch


def float_batch(model, images, size):
    """The batch, and each image's (x, y) scale."""
    prepared = [prepare(image, model.data, size) for image in images]
    pixels = pad([normalize(image.pixels, model.data) for image in prepared], model.data.pad_divisor)
    return Batch(pixels, tuple(image.size for image in prepared)), [image.scale for image in prepared]
