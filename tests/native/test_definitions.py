"""Every kernel against its definition in float64, at each instruction set of the processor."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native.calls import CallMaker, every_call
from native.expected import EXPECTED, differences
from native.sizes import every_size
from var_tokenizer.common import KernelLibrary

HERE = Path(__file__).parent
CALLS = [*every_call(), *every_size()]


@pytest.mark.parametrize("kernel", EXPECTED)
def test_a_kernel_follows_its_definition_at_every_size(results, kernel):
    calls = [call for call in CALLS if call.name == kernel]
    assert calls
    for call in calls:
        assert not differences(call, results(call))


def group_norms(b, y, x, width, groups, silu):
    return (b, y, x, width * groups), groups, silu


def attentions(images, heads, vectors, scales, unit):
    """For scales of so many tokens each."""
    offsets = [sum(scales[:k]) for k in range(len(scales) + 1)]
    return images, heads, 16 * vectors, offsets, offsets[-1], unit


def cached_attentions(images, heads, vectors, begin, tokens, unit):
    return images, heads, 16 * vectors, begin, tokens, begin + tokens, unit


def sizes(*largest):
    return (st.integers(1, n) for n in largest)


SCALES = st.lists(st.integers(1, 60), min_size=1, max_size=5)
ARGUMENTS = {
    "group_norm": st.builds(group_norms, *sizes(3, 20, 20, 20, 9), st.booleans()),
    "nearest_code": st.tuples(*sizes(50, 150, 70)),
    "gelu": st.tuples(*sizes(9, 5000)),
    "modulation": st.tuples(*sizes(3, 50, 200)),
    "linear": st.tuples(st.tuples(*sizes(3, 50)), *sizes(200, 200)),
    "attention": st.builds(attentions, *sizes(3, 3, 8), SCALES, st.booleans()),
    "cached_attention": st.builds(cached_attentions, *sizes(3, 3, 8, 90, 90), st.booleans()),
    "optimizer": st.tuples(*sizes(9, 5000)),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_kernels_follow_their_definitions_at_any_size(results, kind):
    @settings(derandomize=True, deadline=None, max_examples=40)
    @given(arguments=ARGUMENTS[kind], seed=st.integers(0, 999))
    def check(arguments, seed):
        make = CallMaker(seed)
        getattr(make, kind)(*arguments)
        for call in make.calls:
            assert not differences(call, results(call))

    check()


LOWER = [low for low, _ in pairwise(KernelLibrary("var_tokenizer._kernels").opened.available)]


@pytest.mark.parametrize("name", LOWER)
def test_kernels_do_so_at_each_lower_instruction_set(libraries, name):
    opened = KernelLibrary("var_tokenizer._kernels").opened
    if opened.instruction_set != opened.available[-1]:
        pytest.skip("this is such a test")
    tests = [str(HERE / f"test_{part}.py") for part in ("definitions", "convolutions", "linear")]
    tests += [str(HERE / "test_corner_cases.py"), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests],
        env={**os.environ, "VAR_CPU": name},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
