"""Runs every kernel on cases.py; the sanitizers stop the process at a fault."""

import kernels
from cases import CASES

if __name__ == "__main__":
    for op, cases in CASES.items():
        for case in cases(0):
            getattr(kernels, op)(**case, seed=0)
