"""A call of every kernel for each way that it can take, for the tests here and sanitizers.cpp."""

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

Arrays = list[np.ndarray]
LIBRARIES = ("tokenizer", "transformer", "train")


@dataclass(frozen=True)
class Call:
    """A kernel of a library, and the arrays that it takes: inputs, then outputs."""

    library: str
    name: str
    arrays: Arrays


def write(calls: list[Call], file: BinaryIO) -> None:
    """As sanitizers.cpp reads them: a line a call, then a line and the bytes of each array."""
    for call in calls:
        file.write(f"{call.library} {call.name} {len(call.arrays)}\n".encode())
        for array in call.arrays:
            file.write(f"{array.nbytes} {array.ndim} {' '.join(map(str, array.shape))}\n".encode())
            file.write(array.tobytes())


def every_call() -> list[Call]:
    """Small, but large enough for Winograd's tiles, oneDNN's primitives, and several jobs each."""
    rng = np.random.default_rng(0)

    def f(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    def i(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    def numbers(*values: float) -> np.ndarray:
        return np.array(values, np.float32)

    def out(*shape: int) -> np.ndarray:
        return np.full(shape, np.nan, np.float32)

    calls = []

    def tokenizer(name: str, *arrays: np.ndarray) -> None:
        calls.append(Call("tokenizer", name, list(arrays)))

    def transformer(name: str, *arrays: np.ndarray) -> None:
        calls.append(Call("transformer", name, list(arrays)))

    # x, weight, and where the result or its gradient is; stride, zeros before, whether upsampled
    for x, weight, y, geometry in (
        ((1, 18, 22, 32), (32, 3, 3, 32), (1, 18, 22, 32), i(1, 1, 0)),
        ((1, 9, 10, 32), (32, 3, 3, 32), (1, 18, 20, 32), i(1, 1, 1)),
        ((2, 12, 10, 3), (8, 4, 4, 3), (2, 6, 5, 8), i(2, 1, 0)),
        ((2, 12, 10, 4), (16, 1, 1, 4), (2, 6, 5, 16), i(2, 0, 0)),
        ((2, 5, 6, 5), (7, 3, 3, 5), (2, 10, 12, 7), i(1, 1, 1)),
    ):
        bias = weight[0]
        tokenizer("conv2d", f(*x), f(*weight), f(bias), geometry, out(*y))
        tokenizer("conv2d_plus", f(*x), f(*weight), f(bias), f(*y), geometry, out(*y))
        tokenizer("conv2d_grad_x", f(*y), f(*weight), f(*x), geometry, out(*x))
        tokenizer("conv2d_grad_weight", f(*y), f(*x), f(*weight), geometry, out(*weight), out(bias))

    # gradient of the result, x, gain, bias, groups, epsilon
    for silu, images in (("", 2), ("_silu", 1)):
        x, c, settings = (images, 20, 30, 8), 8, (i(4), numbers(1e-6))
        tokenizer(f"group_norm{silu}", f(*x), f(c), f(c), *settings, out(*x))
        results = out(*x), out(c), out(c)
        tokenizer(f"group_norm{silu}_grad", f(*x), f(*x), f(c), f(c), *settings, *results)
    tokenizer("nearest_code", f(70, 8), f(100, 8), np.full(70, -1, np.int32))

    transformer("gelu", f(3, 12000), out(3, 12000))
    transformer("gelu_grad", f(3, 12000), f(3, 12000), out(3, 12000))
    x, one = (2, 40, 50), (2, 1, 50)
    transformer("modulated_norm", f(*x), f(*one), f(*one), out(*x))
    transformer("modulated_norm_grad", f(*x), f(*x), f(*one), out(*x), out(*one), out(*one))
    transformer("gated_sum", f(*x), f(*x), f(*one), out(*x))
    transformer("gated_sum_grad", f(*x), f(*x), f(*one), out(*x), out(*one))
    for rows in (7, 60):  # few, and many
        x, weight, y = (2, rows, 70), (90, 70), (2, rows, 90)
        transformer("linear", f(*x), f(*weight), f(90), out(*y))
        transformer("linear_grad", f(*y), f(*x), f(*weight), out(*x), out(*weight), out(90))
    offsets = i(0, 1, 5, 14, 30)
    for tokens, unit_length in ((30, 1), (14, 0)):
        qkv, mixed, log_sums = (2, tokens, 96), (2, tokens, 32), (2, 2, tokens)
        inputs = f(*qkv), f(2), offsets, i(unit_length)
        transformer("next_scale_attention", *inputs, out(*mixed), out(*log_sums))
        forward = f(*mixed), f(*log_sums)
        results = out(*qkv), out(2)
        transformer("next_scale_attention_grad", f(*mixed), *inputs, *forward, *results)
    cache = f(2, 2, 16, 32), f(2, 2, 30, 16)  # keys, values
    transformer("cached_attention", f(2, 9, 96), f(2), i(5), i(1), *cache, out(2, 9, 32))

    calls.append(Call("train", "sum_of_squares", [f(3, 20000), out(1)]))
    state = f(40000), f(40000), np.abs(f(40000)), f(40000)
    scalars = np.array(0.5, np.float32), np.array(True), numbers(0.1, 1e-8, 0.01)
    calls.append(Call("train", "adamw", [*state, *scalars, numbers(0.9, 0.99)]))
    return calls
