"""Lets each call of oneDNN fail in turn, in a process of its own; test_failures.py runs it.

failures.py TOKENIZER_LIBRARY TRANSFORMER_LIBRARY TRAIN_LIBRARY FAILING_ONEDNN
"""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))
from native.conftest import call_kernel


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def check(fail_at: Callable[[int], int], library: ctypes.CDLL, name: str, *arrays) -> int:
    """Lets each call of oneDNN that a kernel makes fail once; returns how many there are."""
    for calls in range(1000):
        fail_at(calls)
        got = call_kernel(library, name, *arrays)
        if not fail_at(-1):
            assert got == 0, f"{name} returned {got}, and no call of oneDNN failed"
            return calls
        assert got == 1, f"{name} returned {got} when call {calls} of oneDNN failed"
    raise AssertionError(f"{name} goes on calling oneDNN")


def main(tokenizer: str, transformer: str, train: str, onednn: str) -> None:
    fail_at = ctypes.CDLL(onednn).fail_at
    fail_at.argtypes = [ctypes.c_long]
    ours, theirs = ctypes.CDLL(tokenizer), ctypes.CDLL(transformer)
    ours.start_threads(2)
    for library in (ours, theirs, ctypes.CDLL(train)):
        for calls in range(2):
            fail_at(calls)
            assert library.open_kernels(0, onednn.encode(), ours.thread_count, ours.run_jobs) != 0
        assert fail_at(-1), "opening does not call oneDNN"
        assert library.open_kernels(0, onednn.encode(), ours.thread_count, ours.run_jobs) == 0

    # oneDNN reorders the weights of 64 channels
    x, weight, bias, y = floats(1, 8, 8, 64), floats(64, 1, 1, 64), floats(64), floats(1, 8, 8, 64)
    geometry = np.array([1, 0, 0], np.int32)
    matrices, y_linear = (floats(96, 32), floats(16, 32)), floats(96, 16)  # many rows: by oneDNN
    kernels = [
        (ours, "conv2d", x, weight, bias, geometry, y.copy()),
        (ours, "conv2d_grad_x", y, weight, x, geometry, x.copy()),
        (ours, "conv2d_grad_weight", y, x, weight, geometry, weight.copy(), bias.copy()),
        (theirs, "linear", *matrices, floats(16), y_linear.copy()),
        (theirs, "linear_grad", y_linear, *matrices, floats(96, 32), floats(16, 32), floats(16)),
    ]
    for library, name, *arrays in kernels:
        assert check(fail_at, library, name, *arrays) > 10, "a primitive is made"
        assert check(fail_at, library, name, *arrays) > 0, "it is made once, and executed"
    product = x.reshape(-1, 64).astype(np.float64) @ weight.reshape(64, 64).T + bias
    np.testing.assert_allclose(kernels[0][-1].reshape(-1, 64), product, atol=1e-3)
    arrays = kernels[3][2:]
    product = arrays[0].astype(np.float64) @ arrays[1].T + arrays[2]
    np.testing.assert_allclose(arrays[3], product, atol=1e-3)


if __name__ == "__main__":
    main(*sys.argv[1:])
