"""How much memory this process may still take, and what a command says when there is too little."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from var_tokenizer.common.control_groups import memory_kills, memory_left
from var_tokenizer.common.errors import InputError
from var_tokenizer.common.kernels import on_cpu

log = logging.getLogger(__name__)

_SYSTEM = Path("/proc/meminfo")
_UNKNOWN = 4 * 2**30

# what MindSpore 2.7 to 2.10 says on a CPU and on an Ascend, for example "Memory isn't enough and
# alloc failed", "Memory not enough: alloc size[", "Allocate device memory failed", "Malloc memory
# failed: size", "Out of Memory!!! Request memory size", "std::bad_alloc"
_TOO_LITTLE = re.compile(
    r"memory (isn't|is not|not) enough|out of memory|alloc\w*( \w+){0,3} failed|bad_alloc", re.I
)


def available_memory() -> int:
    """Bytes that this process may still take where its tensors are.

    On an NPU that is the device's own memory, elsewhere ``host_memory``.
    """
    on_device = None if on_cpu() else _device_memory()
    return host_memory() if on_device is None else on_device


def host_memory() -> int:
    """Bytes that this process may still take for NumPy's arrays, wherever its tensors are.

    The least of the system's free memory and of what the control groups leave; 4 GiB if neither is
    known.
    """
    known = [n for n in (system_memory(), memory_left()) if n is not None]
    return min(known, default=_UNKNOWN)


def images_that_fit(bytes_each: int, most: int) -> int:
    """How many images of ``bytes_each`` half of the available memory holds: 1 to ``most``."""
    return max(min(available_memory() // 2 // bytes_each, most), 1)


def system_memory(path: Path = _SYSTEM) -> int | None:
    """Bytes of the system's free memory; None where ``path`` is missing or malformed."""
    try:
        found = re.search(r"^MemAvailable:\s+([0-9]{1,20}) kB$", path.read_text("ascii"), re.M)
    except (OSError, UnicodeDecodeError):
        return None
    return int(found[1]) * 1024 if found else None


def _device_memory() -> int | None:
    """Bytes that the NPU has for this process: free ones, and those that MindSpore keeps unused."""
    (Tensor([0.0], ms.float32) + 1).asnumpy()  # before its first use, the device says nothing
    try:
        device = ms.hal.get_device_properties(ms.get_context("device_id"))
        kept = ms.runtime.memory_reserved() - ms.runtime.memory_allocated()
    except (AttributeError, RuntimeError):  # another MindSpore
        return None
    return device.free_memory + kept if device.total_memory else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or MindSpore says that memory could not be had."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _TOO_LITTLE.search(str(error)) is not None


def fewer_images(option: str, batch: int) -> str:
    """The remedy where an option says how many images are computed at once."""
    return f"{option} below {batch}" if batch > 1 else "more memory: one image at once is the least"


def warn_of_kills(remedy: str) -> None:
    """Logs ``remedy`` if this process's control groups have killed one because memory was short.

    Such a process cannot say so itself; one that goes on with its work can.
    """
    if kills := memory_kills():
        log.warning(
            "%d process(es) of this control group were killed because memory was short; if this "
            "command was one of them, give it %s",
            *(kills, remedy),
        )


@contextmanager
def needing_memory(doing: str, remedy: str) -> Iterator[None]:
    """Around what takes much memory: if there is too little, an InputError names the ``remedy``.

    doing: as in "out of memory when drawing 8 images at once". remedy: what to change, see
    ``fewer_images``.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"out of memory when {doing}; expected {remedy}") from error
