"""Calls of the kernels: for the tests here, and as files for the standalone programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from definitions import next_scale_attention

Arrays = list[np.ndarray]
Shape = tuple[int, ...]
LIBRARIES = ("tokenizer", "transformer", "train")


@dataclass(frozen=True)
class Call:
    """A kernel of a library, and the arrays that it takes: inputs, then outputs."""

    library: str
    name: str
    arrays: Arrays

    def __str__(self) -> str:
        return f"{self.name} of {', '.join(str(a.shape) for a in self.arrays)}"


def write(calls: Sequence[Call], file: BinaryIO) -> None:
    """As programs/calls.h reads them: a line a call, then a line and the bytes of each array."""
    for call in calls:
        file.write(f"{call.library} {call.name} {len(call.arrays)}\n".encode())
        for array in call.arrays:
            file.write(f"{array.nbytes} {array.ndim} {' '.join(map(str, array.shape))}\n".encode())
            file.write(array.tobytes())


def read_results(calls: Sequence[Call], file: BinaryIO) -> list[Arrays]:
    """All arrays of each call after it, as programs/results.cpp writes them: bytes alone."""
    return [
        [np.frombuffer(file.read(a.nbytes), a.dtype, a.size).reshape(a.shape) for a in call.arrays]
        for call in calls
    ]


def numbers(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def unwritten(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


class CallMaker:
    """Makes calls of each kind of kernel, forward and backward, on random numbers in [-1, 1]."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.calls: list[Call] = []

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.uniform(-1, 1, shape).astype(np.float32)

    def add(self, library: str, name: str, *arrays: np.ndarray) -> None:
        self.calls.append(Call(library, name, list(arrays)))

    def convolutions(
        self,
        x: Shape,
        outputs: int,
        kernel: int,
        stride: int = 1,
        pads: tuple[int, int] = (1, 1),
        upsampled: bool = False,
    ) -> None:
        """All passes of one, of x (B, Y, X, C) with ``pads`` zeros before and after."""
        f, (b, *size, c) = self.floats, x
        full = [n * (2 if upsampled else 1) + sum(pads) for n in size]
        y = (b, *((n - kernel) // stride + 1 for n in full), outputs)
        weight, bias = (outputs, kernel, kernel, c), (outputs,)
        geometry = integers(stride, pads[0], upsampled)
        add = ("tokenizer",)
        self.add(*add, "conv2d", f(*x), f(*weight), f(*bias), geometry, unwritten(*y))
        inputs = f(*x), f(*weight), f(*bias), f(*y)
        self.add(*add, "conv2d_plus", *inputs, geometry, unwritten(*y))
        self.add(*add, "conv2d_grad_x", f(*y), f(*weight), f(*x), geometry, unwritten(*x))
        results = unwritten(*weight), unwritten(*bias)
        self.add(*add, "conv2d_grad_weight", f(*y), f(*x), f(*weight), geometry, *results)

    def group_norm(self, x: Shape, groups: int, silu: bool) -> None:
        """Of x (B, Y, X, C)."""
        f, c, settings = self.floats, x[3], (integers(groups), numbers(1e-6))
        name = "group_norm_silu" if silu else "group_norm"
        self.add("tokenizer", name, f(*x), f(c), f(c), *settings, unwritten(*x))
        results = unwritten(*x), unwritten(c), unwritten(c)
        self.add("tokenizer", f"{name}_grad", f(*x), f(*x), f(c), f(c), *settings, *results)

    def nearest_code(self, vectors: int, codes: int, width: int) -> None:
        arrays = self.floats(vectors, width), self.floats(codes, width)
        self.add("tokenizer", "nearest_code", *arrays, np.full(vectors, -1, np.int32))

    def gelu(self, *x: int) -> None:
        f = self.floats
        self.add("transformer", "gelu", 4 * f(*x), unwritten(*x))
        self.add("transformer", "gelu_grad", f(*x), 4 * f(*x), unwritten(*x))

    def modulation(self, *x: int) -> None:
        """The norm and the gated sum of x (B, L, C)."""
        f, one = self.floats, (x[0], 1, x[2])
        results = unwritten(*x), unwritten(*one), unwritten(*one)
        add = ("transformer",)
        self.add(*add, "modulated_norm", f(*x), f(*one), f(*one), results[0])
        self.add(*add, "modulated_norm_grad", f(*x), f(*x), f(*one), *results)
        self.add(*add, "gated_sum", f(*x), f(*x), f(*one), results[0])
        self.add(*add, "gated_sum_grad", f(*x), f(*x), f(*one), *results[:2])

    def linear(self, rows: Shape, depth: int, outputs: int) -> None:
        f, x, y, weight = self.floats, (*rows, depth), (*rows, outputs), (outputs, depth)
        self.add("transformer", "linear", f(*x), f(*weight), f(outputs), unwritten(*y))
        results = unwritten(*x), unwritten(*weight), unwritten(outputs)
        self.add("transformer", "linear_grad", f(*y), f(*x), f(*weight), *results)

    def attention(
        self, images: int, heads: int, width: int, offsets: Sequence[int], tokens: int, unit: bool
    ) -> None:
        """Of the first ``tokens``, which end where a scale does; the gradient is of its own."""
        qkv, mixed = (images, tokens, 3 * heads * width), (images, tokens, heads * width)
        settings = self.floats(heads), integers(*offsets), integers(unit)
        inputs = self.floats(*qkv), *settings
        results = unwritten(*mixed), unwritten(images, heads, tokens)
        self.add("transformer", "next_scale_attention", *inputs, *results)
        _, log_sums = next_scale_attention(inputs[0], settings[0], offsets, unit)
        results = unwritten(*qkv), unwritten(heads)
        inputs = self.floats(*mixed), *inputs, log_sums.astype(np.float32)
        self.add("transformer", "next_scale_attention_grad", *inputs, *results)

    def cached_attention(
        self, images: int, heads: int, width: int, begin: int, tokens: int, room: int, unit: bool
    ) -> None:
        """Of a cache for ``room`` tokens, rounded up to whole vectors of any instruction set."""
        cache = self.floats(images, heads, width, -(-room // 16) * 16)
        values = self.floats(images, heads, room, width)
        settings = self.floats(heads), integers(begin), integers(unit)
        qkv = self.floats(images, tokens, 3 * heads * width)
        mixed = unwritten(images, tokens, heads * width)
        self.add("transformer", "cached_attention", qkv, *settings, cache, values, mixed)

    def cached_block(
        self, images: int, heads: int, width: int, begin: int, tokens: int, room: int, unit: bool
    ) -> None:
        """Over a cache as of ``cached_attention``."""
        f, c = self.floats, heads * width
        cache = f(images, heads, width, -(-room // 16) * 16), f(images, heads, room, width)
        maps = [f(*s) / np.float32(10) for s in ((3 * c, c), (c, c), (4 * c, c), (c, 4 * c))]
        qkv = maps[0], f(c), f(c), f(1, heads, 1, 1)
        rest = maps[1], f(c), maps[2], f(4 * c), maps[3], f(c)
        x, modulation = f(images, tokens, c), f(images, 6, c)
        settings = integers(begin), integers(unit)
        inputs = x, modulation, *qkv, *rest, *settings, *cache
        self.add("transformer", "cached_block", *inputs, unwritten(*x.shape))

    def stored_weight(self, kind: int, outputs: int, depth: int) -> Arrays:
        """Elements in [-1, 1] of a kind as of cpp/layers.h, and the scales of int8."""
        elements, scales = self.floats(outputs, depth), numbers()
        if kind == 1:
            elements = elements.astype(np.float16)
        elif kind == 2:
            elements = (elements.view(np.uint32) >> 16).astype(np.uint16)
        elif kind == 3:
            elements = np.rint(127 * elements).astype(np.int8)
            scales = np.abs(self.floats(outputs)) / 127
        return [elements, scales]

    def stored_linear(self, rows: Shape, depth: int, outputs: int, kind: int) -> None:
        f, (weight, scales) = self.floats, self.stored_weight(kind, outputs, depth)
        arrays = f(*rows, depth), weight, integers(kind), scales, f(outputs)
        self.add("transformer", "stored_linear", *arrays, unwritten(*rows, outputs))

    def stored_block(self, kinds: Sequence[int], *sizes: int, unit: bool) -> None:
        """As ``cached_block``, with weights of these kinds."""
        self.cached_block(*sizes, unit=unit)
        *arrays, result = self.calls.pop().arrays
        scales = []
        for at, kind in zip((2, 6, 8, 10), kinds, strict=True):
            arrays[at], of_kind = self.stored_weight(kind, *arrays[at].shape)
            scales.append(of_kind)
        self.add("transformer", "stored_block", *arrays, integers(*kinds), *scales, result)

    def depthwise(
        self, x: Shape, kernel: int, stride: int = 1, pads: tuple[int, int] = (1, 1)
    ) -> None:
        """Both passes, of x (B, Y, X, C) on both sides of where ReLU6 cuts."""
        f, (b, *size, c) = self.floats, x
        y = (b, *((n + sum(pads) - kernel) // stride + 1 for n in size), c)
        inputs = 9 * f(*x), f(kernel, kernel, c)
        geometry = integers(stride, pads[0])
        self.add("train", "depthwise", *inputs, f(c), geometry, unwritten(*y))
        result = 9 * f(*y)
        self.add("train", "depthwise_grad", f(*y), *inputs, geometry, result, unwritten(*x))

    def optimizer(self, *shape: int, finite: bool = True) -> None:
        f = self.floats
        self.add("train", "sum_of_squares", f(*shape), unwritten(1))
        state = f(*shape), f(*shape), np.abs(f(*shape)), f(*shape)
        scalars = np.array(0.5, np.float32), np.array(finite), numbers(0.1, 1e-8, 0.01)
        self.add("train", "adamw", *state, *scalars, numbers(0.9, 0.99))


def every_call() -> list[Call]:
    """Each kernel for each way that it can take.

    Small, but large enough for Winograd's tiles, oneDNN's primitives, and several jobs each.
    """
    make = CallMaker()
    make.convolutions((1, 18, 22, 32), 32, 3)
    make.convolutions((1, 9, 10, 32), 32, 3, upsampled=True)
    make.convolutions((2, 12, 10, 3), 8, 4, 2)
    make.convolutions((2, 12, 10, 4), 16, 1, 2, (0, 0))
    make.convolutions((2, 5, 6, 5), 7, 3, upsampled=True)
    make.group_norm((2, 20, 30, 8), 4, silu=False)
    make.group_norm((1, 20, 30, 8), 4, silu=True)
    make.nearest_code(70, 100, 8)
    make.gelu(3, 12000)
    make.modulation(2, 40, 50)
    for rows in (7, 60):  # few, and many
        make.linear((2, rows), 70, 90)
    for tokens, unit in ((30, True), (14, False)):
        make.attention(2, 2, 16, (0, 1, 5, 14, 30), tokens, unit)
    make.cached_attention(2, 2, 16, 5, 9, 30, unit=True)
    make.cached_block(2, 2, 16, 5, 9, 30, unit=True)
    make.stored_linear((2, 60), 70, 90, 3)
    make.stored_block((0, 1, 2, 3), 2, 2, 16, 5, 9, 30, unit=True)
    make.depthwise((2, 9, 8, 40), 5, 2, (1, 2))
    make.optimizer(3, 20000)
    return make.calls
