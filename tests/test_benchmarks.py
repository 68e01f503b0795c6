"""The benchmarks start, so that an hour's run does not end at its first import."""

import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).resolve().parents[1] / "benchmarks" / "speed"
IMPORT = """
import sys, reference
sys.exit([name for name in sys.modules if name.split(".")[0] == "mindspore"] or None)
"""


def test_a_peers_process_has_our_reference_and_no_mindspore():
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", IMPORT], check=True, cwd=SPEED, timeout=120)
