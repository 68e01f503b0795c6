"""The kernels called from two threads at once, as MindSpore does not today and a user's do."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from var_tokenizer.common import KernelLibrary

ROOT = Path(__file__).parents[2]
TIMES = 4  # a thread calls its kernel this often, so that the two overlap


def test_the_calls_are_of_every_kernel_there_is(calls):
    sources = ROOT.glob("packages/*/src/*/cpp/*.cpp")
    defined = {
        name for path in sources for name in re.findall(r"^KERNEL\((\w+)\)", path.read_text(), re.M)
    }
    assert len(defined) > 15
    assert {call.name for call in calls} == defined


def test_every_pair_of_kernels_gives_from_two_threads_what_it_gives_alone(calls):
    # Bit for bit: how a sum is divided depends on the number of threads, which stays, and never
    # on which thread takes which part.
    alone = [call.results() for call in calls]
    together = threading.Barrier(2, timeout=60)
    wrong = set()

    def repeat(i: int, other: int) -> None:
        together.wait()
        for _ in range(TIMES):
            for got, expected in zip(calls[i].results(), alone[i], strict=True):
                if got.tobytes() != expected.tobytes():
                    wrong.add(f"{calls[i].name} (call {i}) beside {calls[other].name}")

    with ThreadPoolExecutor(2) as pool:
        for i, j in combinations_with_replacement(range(len(calls)), 2):
            for future in (pool.submit(repeat, i, j), pool.submit(repeat, j, i)):
                future.result()
    assert not wrong
    for call, arrays in zip(calls, alone, strict=True):
        for array in arrays:
            finite = np.isfinite(array).all() if array.dtype == np.float32 else True
            assert finite, f"{call.name} gives numbers that are not finite"


def test_kernels_that_run_are_not_disturbed_by_another_opening_of_their_library(calls):
    alone = [call.results() for call in calls]
    stop = threading.Event()

    def open_again() -> int:
        count = 0
        while not stop.is_set():
            for name in ("tokenizer", "transformer"):
                assert KernelLibrary(f"var_{name}._kernels").path is not None
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(open_again)
        try:
            for call, expected in zip(calls, alone, strict=True):
                for got, wanted in zip(call.results(), expected, strict=True):
                    assert got.tobytes() == wanted.tobytes(), call.name
        finally:
            stop.set()
        assert opened.result() > 0
