"""The ranges of training's options, checked before any work."""

from __future__ import annotations

import math

from frcnn.inference.hardware import Precision, available_cpus, check_precision, resolve_device


def check_options(
    *,
    device: str | None,
    precision: Precision,
    weights: object,
    reinit_heads: bool,
    max_bad_images: float,
    timeout: float,
    workers: int,
    seed: int,
    **at_least_one: int | None,
) -> None:
    """Raise ValueError, naming the parameter, its value and its range. None stands for a default."""
    for name, value in at_least_one.items():
        if value is not None:
            _check_whole(name, value, 1)
    check_parallel("workers", workers, 0)
    _check_whole("seed", seed, 0, 2**63 - 1)
    if not 0 <= max_bad_images <= 1:
        raise ValueError(f"max_bad_images={max_bad_images}: it is a share of the training images, 0 to 1")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout={timeout}: it is a number of seconds above 0")
    if reinit_heads and weights in (None, "random", "imagenet"):
        raise ValueError(
            "reinit_heads=True leaves out a checkpoint's class and box layer, and there is no checkpoint: "
            "name one as weights=PATH"
        )
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f'precision={precision!r}: training computes in "float32" or "bfloat16"')
    check_precision(precision, resolve_device(device))


def check_parallel(name: str, count: int, least: int) -> None:
    """Raise ValueError for fewer processes or threads than `least`, or more than this machine could bear."""
    _check_whole(name, count, least, max(64, 4 * available_cpus()))


def _check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        upper = "or more" if most is None else f"to {most}"
        raise ValueError(f"{name}={value!r}: it is a whole number, {least} {upper}")
