"""The native libraries, called as MindSpore calls them, without its one-at-a-time."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from native.calls import LIBRARIES, Arrays, Call, every_call
from var_tokenizer.common import KernelLibrary

Libraries = dict[str, ctypes.CDLL]


def call_kernel(library: ctypes.CDLL, name: str, *arrays: np.ndarray) -> int:
    """Calls a kernel on its inputs and then its outputs; returns its status, 0 if done."""
    count = len(arrays)
    assert all(a.flags["C_CONTIGUOUS"] for a in arrays)
    pointers = (ctypes.c_void_p * count)(*(a.ctypes.data for a in arrays))
    axes = (ctypes.c_int * count)(*(a.ndim for a in arrays))
    sizes = [(ctypes.c_int64 * max(a.ndim, 1))(*a.shape) for a in arrays]
    shapes = (ctypes.c_void_p * count)(*map(ctypes.addressof, sizes))
    types = (ctypes.c_char_p * count)(*(a.dtype.name.encode() for a in arrays))
    return getattr(library, name)(count, pointers, axes, shapes, types, None, None)


@pytest.fixture(scope="session")
def libraries() -> Libraries:
    paths = {name: KernelLibrary(f"var_{name}._kernels").path for name in LIBRARIES}
    if None in paths.values():
        pytest.skip("the kernels were not built when the packages were installed")
    return {name: ctypes.CDLL(path) for name, path in paths.items()}


@pytest.fixture(scope="session")
def run(libraries: Libraries) -> Callable[..., int]:
    """``call_kernel`` of whichever library has it: (name, arrays ...) -> status."""

    def either(name: str, *arrays: np.ndarray) -> int:
        (library,) = (found for found in libraries.values() if hasattr(found, name))
        return call_kernel(library, name, *arrays)

    return either


@pytest.fixture(scope="session")
def results(libraries: Libraries) -> Callable[[Call], Arrays]:
    """All arrays of a call after it, because some kernels write into their inputs."""

    def after(call: Call) -> Arrays:
        arrays = [a.copy() for a in call.arrays]
        status = call_kernel(libraries[call.library], call.name, *arrays)
        assert status == 0, f"{call.name} returned {status}"
        return arrays

    return after


@pytest.fixture(scope="session")
def calls() -> list[Call]:
    return every_call()
