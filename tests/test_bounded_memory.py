"""A training in a control group with little memory is not killed."""

import importlib
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

GIB = 2.5


@pytest.mark.slow
def test_a_training_at_256_px_is_not_killed_in_a_small_control_group(tmp_path, monkeypatch):
    """It validates and draws, too. `nox -s memory` does more of it, with d16 in 8 GiB."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    bounded = importlib.import_module("bounded_memory")
    config = bounded.Config(out=tmp_path / "out", depth=2)
    words = next(iter(bounded.commands(config).values()))
    with ExitStack() as stack:
        try:
            group = stack.enter_context(bounded.control_group(int(GIB * 2**30)))
        except OSError as error:
            pytest.skip(f"no control group can be made: {error}")
        bounded.prepare(config)
        peak = bounded.peak_of([sys.executable, "-m", *words], group)
    assert peak < GIB * 2**30
    assert (tmp_path / "out" / "run" / "samples.png").exists()
