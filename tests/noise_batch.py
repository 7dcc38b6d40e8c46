"""A batch of two images of noise, with five boxes in each."""

import torch

from frcnn.structures import Batch


def noise_batch(sizes, side):
    """sizes: (height, width) of both, the first of which the batch has. side: boxes begin and grow within."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 5, 2, generator=generator) * side
    boxes = torch.cat([corner, corner + 8 + torch.rand(2, 5, 2, generator=generator) * side * 5 / 6], 2)
    labels = torch.randint(0, 80, (2, 5), generator=generator)
    pixels = torch.randint(0, 256, (2, *sizes[0], 3), generator=generator, dtype=torch.uint8)
    return Batch(pixels, sizes, tuple(boxes), tuple(labels))
