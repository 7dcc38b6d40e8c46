"""Every file of operators/: what its kernels are run on, and how they are launched.

For an operator x, ``x_cases(seed)`` yields arguments as dicts: ordinary shapes, empty ones, sizes just
around a warp, a block and a tile, ties, and numbers that are not finite. Half and bfloat16 arrays are uint16
with ``kind`` "half" or "bfloat16". ``x(**case, seed=0)`` does with numpy arrays what the binding of
csrc/bindings does with tensors: outputs, workspace, a launch on the emulator. Some operators have a pair for
each of their forms.
"""

from __future__ import annotations

import importlib
from pathlib import Path

CASES, EMULATED = {}, {}
for path in sorted(Path(__file__).with_name("operators").glob("*.py")):
    functions = vars(importlib.import_module(f"operators.{path.stem}"))
    for name in [name for name in functions if name.endswith("_cases")]:
        op = name.removesuffix("_cases")
        CASES[op], EMULATED[op] = functions[name], functions[op]
