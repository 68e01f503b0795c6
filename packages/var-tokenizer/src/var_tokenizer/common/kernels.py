"""C++ kernels, compiled when a package is installed, as operators of MindSpore's graphs.

A library holds each kernel for several instruction sets and runs the best that the processor has.
``VAR_CPU=v3`` in the environment holds it, and oneDNN's products, to another: for tests, and to
find out whether a result or a crash depends on it.
"""

import ctypes
import importlib.util
import logging
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import CustomRegOp, DataType

from var_tokenizer.common.threads import settle_mindspore, thread_count
from var_tokenizer.common.versions import memory_address, onednn_path

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
_POOL = "var_tokenizer._kernels"  # owns the threads that all libraries share
_VARIABLE = "VAR_CPU"
_ONEDNN_SETS = {"baseline": "SSE41", "v3": "AVX2"}  # as ONEDNN_MAX_CPU_ISA calls them
_OUT_OF_MEMORY = 2  # of the statuses in cpp/common/kernel.h
_MACHINES = {62: "x86_64", 183: "aarch64"}  # by e_machine, of the header of an ELF file

_wanted = os.environ.get(_VARIABLE, "")  # read once: all libraries of a process agree
if _wanted in _ONEDNN_SETS:
    os.environ["ONEDNN_MAX_CPU_ISA"] = _ONEDNN_SETS[_wanted]  # oneDNN reads it at its first use


def on_cpu() -> bool:
    """Whether cells built now run on the CPU."""
    return ms.get_context("device_target") == "CPU"


def kernels_in_use(packages: Sequence[str]) -> list[str]:
    """Those of ``packages`` (e.g. "var_tokenizer") whose kernels a cell built now would call."""
    return [name for name in packages if KernelLibrary(f"{name}._kernels").if_usable()]


@dataclass(frozen=True)
class Opened:
    """A library that can be used, or the reason why it cannot."""

    path: Path | None = None
    instruction_set: str = ""
    """That its kernels run, e.g. "v3"."""
    available: tuple[str, ...] = ()
    """Those that it was built for and the processor has, lowest first."""
    reason: str = ""


class _RefusedError(Exception):
    """A library that does not suit the processor or the environment."""


def _file(module: str) -> Path:
    package, _, name = module.rpartition(".")
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, f"{name}.so")).exists():
            return path
    raise FileNotFoundError("it was not built when the package was installed")


def _load(path: Path) -> ctypes.CDLL:
    with path.open("rb") as file:
        header = file.read(64)
    if ":" in str(path):
        raise _RefusedError(f"{path} has a colon, after which MindSpore expects a function's name")
    if header[:4] != b"\x7fELF" or len(header) < 64:
        raise _RefusedError(f"{path} is no library")
    # https://refspecs.linuxfoundation.org/elf: e_machine, and the table at the end of the file
    machine, table, size, count = (
        int.from_bytes(header[begin:end], "little")
        for begin, end in ((18, 20), (40, 48), (58, 60), (60, 62))
    )
    built_for = _MACHINES.get(machine, f"machine {machine}")
    if built_for != platform.machine():
        raise _RefusedError(f"{path} was built for {built_for}, and this is {platform.machine()}")
    if path.stat().st_size < table + size * count:  # to load it would end the process
        raise _RefusedError(f"{path} is cut off")
    return ctypes.CDLL(str(path))


def _check_sources(path: Path, library: ctypes.CDLL) -> None:
    """Where a library lies beside its sources, they are those it was built from."""
    package = path.parent
    spec = importlib.util.spec_from_file_location("building", package / "cpp/common/building.py")
    if spec is None or spec.loader is None or not Path(str(spec.origin)).exists():
        return
    building = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(building)
    library.kernel_sources.restype = ctypes.c_char_p
    if library.kernel_sources().decode() != building.digest(package):
        raise _RefusedError(f"{path} was built from other sources; install {package.name} again")


def _instruction_sets(library: ctypes.CDLL) -> dict[str, bool]:
    """What it was built for, lowest first, and whether the processor has each."""
    library.kernel_variant.restype = ctypes.c_char_p
    names: dict[str, bool] = {}
    while (name := library.kernel_variant(len(names))) is not None:
        names[name.decode()] = bool(library.processor_has(len(names)))
    return names


def _chosen(sets: dict[str, bool]) -> str:
    """The instruction set that VAR_CPU names, or the best that the processor has."""
    available = [name for name, has in sets.items() if has]
    wanted = _wanted or available[-1]
    if wanted not in sets:
        raise _RefusedError(f"{_VARIABLE} is {wanted!r}; expected one of {', '.join(sets)}")
    if wanted not in available:
        has = ", ".join(available)
        raise _RefusedError(f"{_VARIABLE} is {wanted!r}, and the processor has {has} only")
    return wanted


def _open(module: str) -> Opened:
    onednn = onednn_path()
    try:
        path, pool = _file(module), _load(_file(_POOL))
        library = _load(path)
        _check_sources(path, library)
        sets = _instruction_sets(library)
        name = _chosen(sets)
        pool.start_threads(thread_count())
        variant = list(sets).index(name)
        status = library.open_kernels(
            variant, os.fsencode(onednn), pool.thread_count, pool.run_jobs
        )
        if status:
            raise _RefusedError(f"{onednn} does not load as oneDNN (error {status})")
    except FileNotFoundError as error:
        return Opened(reason=str(error))
    except AttributeError as error:  # a function is missing
        _warn_once(
            f"{error}: built by another version of var-*; operators are composed, and slower"
        )
        return Opened(reason=f"{error}: it was built by another version")
    except (OSError, _RefusedError) as error:
        _warn_once(f"{error}: operators are composed, and slower")
        return Opened(reason=str(error))
    return Opened(path, name, tuple(n for n, has in sets.items() if has))


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    log.warning(message)


class KernelLibrary:
    """The kernels of ``module``, an extension module's name, e.g. ``var_tokenizer._kernels``.

    They are missing if the package was installed without a compiler. Operators are then composed
    of MindSpore's own.
    """

    def __init__(self, module: str) -> None:
        self.module = module

    @cached_property
    def opened(self) -> Opened:
        """The library, opened at the first request; why it cannot be used is logged once."""
        opened = _open(self.module)
        if opened.path is None:
            log.info("%s is not used (%s): operators are composed", self.module, opened.reason)
        return opened

    @property
    def path(self) -> Path | None:
        """Where the library is; None if it cannot be used."""
        return self.opened.path

    def if_usable(self) -> "KernelLibrary | None":
        """The library, for float32 arrays; None if cells built now cannot use it."""
        if not on_cpu():
            return None
        usable = self.path is not None
        # the kernels do nearly all of the work: MindSpore's threads would only wait for each other
        settle_mindspore(1 if usable else thread_count())
        return self if usable else None

    def function(self, name: str) -> Callable[..., None]:
        """Kernel ``name`` on arrays in memory, outside of graphs: inputs, then outputs.

        It writes to the outputs. Arrays are NumPy's, or tensors of the CPU; dense, and of the types
        that the kernel takes. Raises MemoryError, or RuntimeError for arrays that do not fit.
        """
        kernel = ctypes.CDLL(str(self.path))[name]

        def call(*arrays: np.ndarray | Tensor) -> None:
            count = len(arrays)
            shapes = [(ctypes.c_int64 * max(len(a.shape), 1))(*a.shape) for a in arrays]
            status = kernel(
                count,
                (ctypes.c_void_p * count)(*map(_address, arrays)),
                (ctypes.c_int * count)(*(len(a.shape) for a in arrays)),
                (ctypes.c_void_p * count)(*map(ctypes.addressof, shapes)),
                (ctypes.c_char_p * count)(*(str(a.dtype).lower().encode() for a in arrays)),
                None,
                None,
            )
            if status == _OUT_OF_MEMORY:
                raise MemoryError(f"kernel {name} got no memory")
            if status:
                raise RuntimeError(f"kernel {name} ended with status {status}")

        return call

    def operator(
        self,
        name: str,
        shapes: Callable[..., Shape | tuple[Shape, ...]] | int,
        outputs: int = 1,
        dtype: ms.dtype = ms.float32,
        setting: object = None,
    ) -> ops.Custom:
        """Kernel ``name`` as an operator.

        shapes: a function from the shapes of the inputs to that of the output, or to those of
        several. Or the number of inputs, if the library infers the shape of its one output
        (RESULT_SHAPE): such an operator also runs in graphs compiled for sizes not yet known.
        setting: what else ``shapes`` depends on. MindSpore remembers the shapes that it inferred,
        and would reuse them for another setting.
        """
        dtypes = dtype if outputs == 1 else (dtype,) * outputs
        path, registered, infer = f"{self.path}:{name}", None, None
        if isinstance(shapes, int):
            registered = CustomRegOp(name).output(0, "output", "required").target("CPU")
            for i in range(shapes):
                registered = registered.input(i, f"input{i}", "required")
            types = [DataType.None_None] * (shapes + 1)
            registered = registered.dtype_format(*types).get_op_info()
        else:
            infer = shapes
        operator = ops.Custom(path, infer, lambda *_: dtypes, func_type="aot", reg_info=registered)
        operator.add_prim_attr("setting", str(setting))
        return operator


def _address(array: np.ndarray | Tensor) -> int:
    if isinstance(array, Tensor):
        return memory_address(array)
    assert array.flags["C_CONTIGUOUS"]
    return array.ctypes.data
