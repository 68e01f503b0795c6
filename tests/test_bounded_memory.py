"""The commands in a control group with little memory: none of them is killed."""

import importlib
from pathlib import Path

import pytest

GIB = 2.5


@pytest.mark.slow
def test_no_command_at_256_px_is_killed_in_a_small_control_group(tmp_path, monkeypatch):
    """Eight images at once of a validation's grid would not fit, nor 16 of the tokenizer.

    `nox -s memory` does the same with d16 in 8 GiB.
    """
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    bounded = importlib.import_module("bounded_memory")
    try:
        with bounded.control_group(2**30):
            pass
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    config = bounded.Config(out=tmp_path / "out", gib=GIB, depth=2, samples=2, images=2)
    results = bounded.run(config)
    assert len(results) == 4
    assert all(peak < GIB for _, peak, _ in results), results
