"""The notebooks run from the first cell to the last, in an empty folder, and are stored without outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


RUN = """
import sys, nbclient, nbformat
source, folder, target = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
nbformat.validate(notebook)
place = {"metadata": {"path": folder}}
nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
nbformat.write(notebook, target)
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    """In a process of its own: the client brings an event loop and sockets, which tests need not share."""
    pytest.importorskip("nbclient", reason="nbclient is of the extra test")
    folder, target = tmp_path / "empty", tmp_path / "run.ipynb"
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, path, folder, target]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    printed = sum(
        len(json.dumps(cell.get("outputs", []))) for cell in json.loads(target.read_text())["cells"]
    )
    assert 0 < printed < 20_000, "outputs are small"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"] is not None]
