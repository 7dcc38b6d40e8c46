"""Detections compared bit for bit."""

import torch


def identical(one, other):
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "labels")
    )
