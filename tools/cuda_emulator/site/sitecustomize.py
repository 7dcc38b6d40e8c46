"""Imported by every Python process of an emulated command: has ATen computed as soon as torch is there."""

import ctypes
import importlib.abc
import importlib.machinery
import os
import sys


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Finds torch once, as it would be found anyway, and loads the operators behind it."""

    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            ctypes.CDLL(os.environ["EMULATED_GPU_ATEN"]).gpu_compute_aten()

        spec.loader.exec_module = exec_module
        return spec


if "EMULATED_GPU_ATEN" in os.environ:
    sys.meta_path.insert(0, _AfterTorch())
