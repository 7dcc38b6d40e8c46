"""Runs every kernel on its cases; the sanitizers stop the process at a fault."""

from cases import CASES, EMULATED

if __name__ == "__main__":
    for op, cases in CASES.items():
        for case in cases(0):
            EMULATED[op](**case)
