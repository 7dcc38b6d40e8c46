"""The cases of cases.py as arguments of the operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
FORMS = {"nms_grouped": "nms", "nms_large": "nms", "nms_padded_large": "nms_padded"}


def operator(form: str) -> Callable:
    return getattr(torch.ops.frcnn_ops, FORMS.get(form, form))


def tensor(value: np.ndarray, kind: str | None = None) -> Tensor:
    t = torch.from_numpy(np.array(value, order="C"))
    return t.view(torch.float16 if kind == "half" else torch.bfloat16) if value.dtype == np.uint16 else t


def arguments(form: str, case: dict, device: str = "cpu") -> dict:
    """By name, arrays as tensors on the device, in the operator's order."""

    def convert(value: object) -> object:
        if isinstance(value, np.ndarray):
            return tensor(value, case.get("kind")).to(device)
        return [convert(v) for v in value] if isinstance(value, list) else value

    dtype = DTYPES.get(case.get("kind"), torch.float32)
    named = {"device": torch.device(device), "dtype": dtype, **case}
    wanted = [argument.name for argument in operator(form).default._schema.arguments]
    return {name: convert(named[name]) for name in wanted if name in named}
