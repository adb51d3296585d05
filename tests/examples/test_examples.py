"""Runs every example as a reader would: scripts as programs, the notebook cell by cell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
TIMEOUT_S = 900  # a hang, on any machine

# Script → text that its output contains.
SCRIPTS = {
    "02_own_tool.py": ("SFT 40/40", "overall", "results.json"),
    "03_own_loss.py": ("[-1.0, -0.0, -0.2", "ranks: [-1.5, 1.0, 1.0, -0.5]", "% of the tokens are masked"),
    "04_own_data.py": ("12 rows, 12 usable", "results.json"),
    "05_sandbox_client.py": ("OK drawn: (64, 48) 1 image", "NameError", "PermissionError", "TIMEOUT", "['Oslo']"),
}
NOTEBOOKS = ("01_quickstart.ipynb",)


def environment() -> dict[str, str]:
    """Returns the variables of this process with the repository on the path, as after an installation."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return os.environ | {"PYTHONPATH": path}


def test_every_example_is_run_here():
    """Catches an example that was added or renamed without a test."""
    present = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert present == {*SCRIPTS, *NOTEBOOKS}


TRAINING = ("02_own_tool.py", "03_own_loss.py", "04_own_data.py")  # train a small policy, which takes minutes


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in TRAINING else name for name in SCRIPTS]
)
def test_script_runs_and_prints_what_it_promises(name, tmp_path):
    """Catches an example that uses a renamed function or field, or whose result changed."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [text for text in SCRIPTS[name] if text not in done.stdout] == [], done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_its_stored_outputs_are_current(name, tmp_path, monkeypatch):
    """Catches a cell that fails, and a stored output that the code no longer prints.

    The cell with the rewards is compared, which follows from all sampled tokens; paths, times and the last digit of
    log-probs differ between machines.
    """
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    stored = printed(notebook)
    assert any("advantage" in text for text in stored), "the notebook is stored with its outputs"
    NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    current = printed(notebook)
    assert len(current) == len(stored)
    for before, now in zip(stored, current, strict=True):
        if "advantage" in before:
            assert now == before


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """Returns the printed text of every code cell."""
    return [
        "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
