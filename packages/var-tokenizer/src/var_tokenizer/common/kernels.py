"""C++ functions, compiled when a package is installed, as operators of MindSpore's graphs."""

import ctypes
import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import mindspore as ms
from mindspore import ops
from mindspore.ops import CustomRegOp, DataType

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
_THREADS = "var_tokenizer._kernels"  # the library whose threads all share


def _file_of(module: str) -> str | None:
    spec = importlib.util.find_spec(module)
    return None if spec is None else spec.origin


def _thread_count() -> int:
    """OMP_NUM_THREADS where the user sets it, else the processors of the process.

    As Python found the variable when it started: importing MindSpore sets it to 1.
    """
    number = os.environ.get("OMP_NUM_THREADS", "")
    return int(number) if number.isdecimal() and int(number) else len(os.sched_getaffinity(0))


class KernelLibrary:
    """The shared library ``module``, an extension module's name, e.g. ``var_tokenizer._kernels``.

    It is missing where the package was installed without a compiler; the operators are then
    composed of MindSpore's own.

    The library has a function ``open_kernels(onednn, thread_count, run_jobs)`` that readies it and
    returns 0: the path of MindSpore's oneDNN, and the two functions of ``cpp/threads.h``, because
    all libraries of a process share the threads of the tokenizer's.
    """

    def __init__(self, module: str) -> None:
        self.module = module

    @cached_property
    def path(self) -> str | None:
        """Where the library stands; None where it cannot be used, which is logged once."""
        path, threads = _file_of(self.module), _file_of(_THREADS)
        if path is None or threads is None:
            reason = "it was not built when the package was installed"
        else:
            onednn = Path(ms.__file__).parent / "lib" / "libdnnl.so.3"
            try:
                shared = ctypes.CDLL(threads)
                shared.start_threads(_thread_count())
                status = ctypes.CDLL(path).open_kernels(
                    str(onednn).encode(), shared.thread_count, shared.run_jobs
                )
                reason = f"open_kernels returned {status}" if status else ""
            except OSError as error:
                reason = str(error)
            if not reason:
                return path
        log.info("%s is not used (%s): operators are composed, and slower", self.module, reason)
        return None

    def operator(
        self,
        name: str,
        shapes: Callable[..., Shape | tuple[Shape, ...]] | int,
        outputs: int = 1,
        dtype: ms.dtype = ms.float32,
        setting: object = None,
    ) -> ops.Custom:
        """The function ``name`` of the library as an operator.

        shapes: from the shapes of the inputs to that of the output, or to those of several. Or the
        number of inputs, where the function ``{name}InferShape`` of the library says the same of
        one output: such operators run in graphs that are compiled for sizes not yet known, too.
        setting: what ``shapes`` depends on besides; MindSpore remembers the shapes that it has
        inferred, and would give those of another setting.
        """
        dtypes = dtype if outputs == 1 else (dtype,) * outputs
        registered = None
        if isinstance(shapes, int):
            registered = CustomRegOp(name).output(0, "output", "required").target("CPU")
            for i in range(shapes):
                registered = registered.input(i, f"input{i}", "required")
            types = [DataType.None_None] * (shapes + 1)
            registered, shapes = registered.dtype_format(*types).get_op_info(), None
        operator = ops.Custom(
            f"{self.path}:{name}", shapes, lambda *_: dtypes, func_type="aot", reg_info=registered
        )
        operator.add_prim_attr("setting", str(setting))
        return operator
