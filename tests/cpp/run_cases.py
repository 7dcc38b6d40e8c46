"""Runs every kernel on cases.py; the sanitizers stop the process at a fault."""

from tests.cpp import kernels
from tests.cpp.cases import CASES

if __name__ == "__main__":
    for op, cases in CASES.items():
        for case in cases(0):
            getattr(kernels, op)(**case, seed=0)
