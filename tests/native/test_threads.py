"""The kernels called from two threads at once: MindSpore does not today, a user's threads do."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement

import numpy as np
from native.calls import LIBRARIES
from var_tokenizer.common import KernelLibrary

TIMES = 4  # a thread calls its kernel this often, so that the two overlap


def test_kernels_give_the_same_bits_beside_any_other_in_a_second_thread(calls, results):
    # the parts of a sum depend on the number of threads, not on which thread takes which part
    alone = [results(call) for call in calls]
    together = threading.Barrier(2, timeout=60)
    wrong = set()

    def repeat(i: int, other: int) -> None:
        together.wait()
        for _ in range(TIMES):
            for got, expected in zip(results(calls[i]), alone[i], strict=True):
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
            assert finite, f"{call.name} gives NaN or infinity"


def test_opening_a_library_again_does_not_disturb_running_kernels(calls, results):
    alone = [results(call) for call in calls]
    stop = threading.Event()

    def open_again() -> int:
        count = 0
        while not stop.is_set():
            for name in LIBRARIES:
                assert KernelLibrary(f"var_{name}._kernels").path is not None
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(open_again)
        try:
            for call, expected in zip(calls, alone, strict=True):
                for got, wanted in zip(results(call), expected, strict=True):
                    assert got.tobytes() == wanted.tobytes(), call.name
        finally:
            stop.set()
        assert opened.result() > 0
