"""Marks parts of a program that runs dry: the peak of memory, and what crosses to the device.

    from region import region
    with region("step"):
        training.train_step(0)

MindSpore's log names kernels and graphs; marks on stderr between its lines say which part they
belong to.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

MARK = "DRY_RUN_MARK "
READERS = (
    *("asnumpy", "__array__", "item", "tolist"),
    *("__float__", "__int__", "__bool__", "__index__"),
)


@contextmanager
def region(name: str) -> Iterator[None]:
    """A part of the program, with a peak of memory and transfers of its own.

    Regions do not nest.
    """
    import mindspore as ms

    ms.runtime.synchronize()
    ms.runtime.reset_max_memory_allocated()
    _mark("begin", name)
    with _Transfers() as transfers:
        yield
        ms.runtime.synchronize()
    peak = int(ms.runtime.max_memory_allocated())
    _mark("end", name, peak_bytes=peak, up_bytes=transfers.up(), down_bytes=transfers.down)


def _mark(event: str, name: str, **more: object) -> None:
    sys.stdout.flush()
    text = MARK + json.dumps({"event": event, "name": name, **more}) + "\n"
    sys.stderr.write(text)
    sys.stderr.flush()


class _Transfers:
    """Counts bytes between host and device where Python can see them.

    Up: arrays of the host that a graph takes, at each of its runs, and those that an operator
    outside of graphs took. Down: what is read of an array of the device.
    """

    def __init__(self) -> None:
        self.down = 0
        self._of_graphs = 0
        self._taken: set[int] = set()  # addresses of tensors that a graph took
        self._made: list[Any] = []  # kept alive, so that their addresses stay theirs
        self._restore: list[tuple[Any, str, Any]] = []
        self._reading = False

    def up(self) -> int:
        of_operators = (t for t in self._made if id(t) not in self._taken and _on_device(t))
        return self._of_graphs + sum(int(t.nbytes) for t in of_operators)

    def __enter__(self) -> "_Transfers":
        from mindspore import Tensor
        from var_tokenizer.common import graph_api

        for name in READERS:
            self._replace(Tensor, name, self._reads(getattr(Tensor, name)))
        self._replace(Tensor, "__init__", self._makes(Tensor.__init__))
        from_numpy = Tensor.from_numpy

        def keep(array: object) -> Any:
            tensor = from_numpy(array)
            self._made.append(tensor)
            return tensor

        self._replace(Tensor, "from_numpy", staticmethod(keep))
        executor = type(graph_api._pynative_executor)
        self._replace(executor, "grad_jit", self._takes(executor.grad_jit))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, before in reversed(self._restore):
            setattr(owner, name, before)

    def _replace(self, owner: Any, name: str, function: Any) -> None:
        self._restore.append((owner, name, owner.__dict__.get(name, getattr(owner, name))))
        setattr(owner, name, function)

    def _reads(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Any, *arguments: Any, **options: Any) -> Any:
            outermost, self._reading = not self._reading, True  # float() calls item(), say
            try:
                if outermost and _on_device(tensor):
                    self.down += int(tensor.nbytes)
                return read(tensor, *arguments, **options)
            finally:
                self._reading = not outermost

        return counted

    def _makes(self, make: Callable[..., None]) -> Callable[..., None]:
        def counted(tensor: Any, *arguments: Any, **options: Any) -> None:
            make(tensor, *arguments, **options)
            self._made.append(tensor)

        return counted

    def _takes(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(executor: Any, *arguments: Any) -> Any:
            for tensor in _tensors(arguments):
                if not _on_device(tensor):
                    self._of_graphs += int(tensor.nbytes)
                    self._taken.add(id(tensor))
            return run(executor, *arguments)

        return counted


def _on_device(tensor: Any) -> bool:
    return str(tensor.device).startswith("Ascend")


def _tensors(values: Iterable[Any]) -> Iterator[Any]:
    """The tensors among arguments, parameters left out: those stay on the device."""
    from mindspore import Parameter, Tensor

    for value in values:
        if isinstance(value, tuple | list):
            yield from _tensors(value)
        elif isinstance(value, Tensor) and not isinstance(value, Parameter):
            yield value
