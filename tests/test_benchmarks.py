"""The benchmarks start, so that an hour's run does not end at its first import."""

import importlib
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


def test_the_growth_check_names_what_is_not_flat(monkeypatch):
    monkeypatch.syspath_prepend(SPEED.parent)
    growth = importlib.import_module("data_growth")
    a_step = dict.fromkeys(growth.EACH, 50e-6)
    a_start = dict.fromkeys(growth.WHOLE, 1.0)
    small = a_step | a_start | dict.fromkeys(growth.MEMORY, 10e6)
    large = a_step | dict.fromkeys(growth.WHOLE, 5.0) | dict.fromkeys(growth.MEMORY, 25e6)
    numbers = 20_000, 100_000
    assert growth.problems(small, large, *numbers) == []
    for name, value in (("image", 130e-6), ("cache_open", 11.0), ("peak_bytes", 31e6)):
        [said] = growth.problems(small, large | {name: value}, *numbers)
        assert said.startswith(f"{name}: ")
