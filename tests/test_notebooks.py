"""The notebooks run from the first cell to the last on the models of a short run on the digits."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SHORT = "--train-tokenizer.epochs 1 --train-transformer.epochs 2 --sampling.per-class 2"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def beside_a_run(tmp_path_factory) -> Path:
    """A folder beside ``runs/digits``, as the notebooks' own is."""
    root = tmp_path_factory.mktemp("clone")
    command = [sys.executable, "-m", "var_train.run", *SHORT.split()]
    environment = os.environ | {"GLOG_v": "3"}
    subprocess.run(command, cwd=root, env=environment, check=True)
    (root / "notebooks").mkdir()
    return root / "notebooks"


@pytest.mark.parametrize("name", ["sample", "edit"])
def test_a_notebook_runs(name, beside_a_run):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(beside_a_run)}}
    ).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", {}) for out in shown) >= 5
