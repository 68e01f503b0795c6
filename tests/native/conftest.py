"""Both native libraries, called as MindSpore calls them, without MindSpore's one-at-a-time."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from var_tokenizer.common import KernelLibrary

Arrays = list[np.ndarray]
DTYPES = {"f": np.float32, "p": np.float32, "i": np.int32, "b": np.bool_}


def run(library: ctypes.CDLL, name: str, *arrays: np.ndarray) -> int:
    """Calls a kernel on its inputs and then its outputs; what it returns, 0 where all is well."""
    count = len(arrays)
    assert all(a.flags["C_CONTIGUOUS"] for a in arrays)
    pointers = (ctypes.c_void_p * count)(*(a.ctypes.data for a in arrays))
    axes = (ctypes.c_int * count)(*(a.ndim for a in arrays))
    sizes = [(ctypes.c_int64 * max(a.ndim, 1))(*a.shape) for a in arrays]
    shapes = (ctypes.c_void_p * count)(*map(ctypes.addressof, sizes))
    return getattr(library, name)(count, pointers, axes, shapes, None, None, None)


@dataclass(frozen=True)
class Call:
    """A kernel and the arrays that it is called on, its outputs full of NaN or -1."""

    library: ctypes.CDLL
    name: str
    arrays: Arrays

    def results(self) -> Arrays:
        """All arrays after the call, because some kernels write into their inputs."""
        arrays = [a.copy() for a in self.arrays]
        status = run(self.library, self.name, *arrays)
        assert status == 0, f"{self.name} returned {status}"
        return arrays


def parsed(word: str, rng: np.random.Generator, output: bool) -> np.ndarray:
    kind, dtype = word[0], DTYPES[word[0]]
    if "=" in word:
        values = np.array([float(value) for value in word.split("=")[1].split(",")]).astype(dtype)
        return values.reshape(()) if word[1] == "." else values
    shape = tuple(map(int, word[2:].split("x")))
    if output:
        return np.full(shape, -1 if kind == "i" else np.nan, dtype)
    return rng.uniform(0 if kind == "p" else -1, 1, shape).astype(dtype)


@pytest.fixture(scope="session")
def libraries() -> dict[str, ctypes.CDLL]:
    found = {}
    for name in ("tokenizer", "transformer"):
        path = KernelLibrary(f"var_{name}._kernels").path
        if path is None:
            pytest.skip("the kernels were not built when the packages were installed")
        found[name] = ctypes.CDLL(path)
    return found


@pytest.fixture(scope="session")
def tokenizer_run(libraries) -> Callable[..., int]:
    """``run`` of the tokenizer's library: (kernel, arrays ...) -> status."""
    return lambda name, *arrays: run(libraries["tokenizer"], name, *arrays)


@pytest.fixture(scope="session")
def transformer_run(libraries) -> Callable[..., int]:
    """``run`` of the transformer's library: (kernel, arrays ...) -> status."""
    return lambda name, *arrays: run(libraries["transformer"], name, *arrays)


@pytest.fixture(scope="session")
def calls(libraries) -> list[Call]:
    """Those of kernels.txt."""
    rng, found = np.random.default_rng(0), []
    for line in (Path(__file__).parent / "kernels.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        library, name, *words = line.split()
        ends = words.index(">")
        arrays = [parsed(word, rng, False) for word in words[:ends]]
        arrays += [parsed(word, rng, True) for word in words[ends + 1 :]]
        found.append(Call(libraries[library], name, arrays))
    return found
