"""C++ kernels, compiled when a package is installed, as operators of MindSpore's graphs."""

import ctypes
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import mindspore as ms
from mindspore import ops
from mindspore.ops import CustomRegOp, DataType

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
_POOL = "var_tokenizer._kernels"  # owns the threads that all libraries share
_REFUSALS = {1: "the processor lacks instructions that it was built for", 2: "oneDNN does not load"}


def on_cpu() -> bool:
    """Whether cells built now run on the CPU."""
    return ms.get_context("device_target") == "CPU"


def kernels_in_use(packages: Sequence[str]) -> list[str]:
    """Those of ``packages`` (e.g. "var_tokenizer") whose kernels a cell built now would call."""
    return [name for name in packages if on_cpu() and not _opened(f"{name}._kernels")[1]]


def _thread_count() -> int:
    """OMP_NUM_THREADS if the user set it, else the number of processors this process may use.

    Read from the environment that Python started with: importing MindSpore sets it to 1.
    """
    count = os.environ.get("OMP_NUM_THREADS", "")
    return int(count) if count.isdecimal() and int(count) else len(os.sched_getaffinity(0))


def _opened(module: str) -> tuple[str, str]:
    """The path of a library, or "" and the reason why it cannot be used."""
    specs = importlib.util.find_spec(module), importlib.util.find_spec(_POOL)
    path, pool_path = (spec and spec.origin for spec in specs)
    if not path or not pool_path:
        return "", "it was not built when the package was installed"
    onednn = Path(ms.__file__).parent / "lib" / "libdnnl.so.3"
    try:
        pool = ctypes.CDLL(pool_path)
        pool.start_threads(_thread_count())
        status = ctypes.CDLL(path).open_kernels(
            str(onednn).encode(), pool.thread_count, pool.run_jobs
        )
    except OSError as error:
        return "", str(error)
    return ("", _REFUSALS.get(status, f"error {status}")) if status else (path, "")


class KernelLibrary:
    """The kernels of ``module``, an extension module's name, e.g. ``var_tokenizer._kernels``.

    They are missing if the package was installed without a compiler. Operators are then composed
    of MindSpore's own.
    """

    def __init__(self, module: str) -> None:
        self.module = module

    @cached_property
    def path(self) -> str | None:
        """Where the library is; None if it cannot be used, which is logged once."""
        path, reason = _opened(self.module)
        if not reason:
            return path
        log.info("%s is not used (%s): operators are composed, and slower", self.module, reason)
        return None

    def if_usable(self) -> "KernelLibrary | None":
        """The library, for float32 arrays; None if cells built now cannot use it."""
        return self if on_cpu() and self.path is not None else None

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
