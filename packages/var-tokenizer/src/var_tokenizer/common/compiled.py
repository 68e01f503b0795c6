"""Compiled passes of a model: one thread at a time, and always with the current weights."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mindspore import Parameter, Tensor, nn

from var_tokenizer.common.errors import InputError
from var_tokenizer.common.kernels import on_cpu
from var_tokenizer.common.versions import (
    check_mindspore,
    is_on_device,
    memory_address,
    memory_of,
)

one_at_a_time = threading.RLock()
"""Hold this while MindSpore compiles, runs a graph or calls an operator: MindSpore crashes the
process if two Python threads do so at once."""


class CompiledPasses:
    """The compiled passes of a model. Not a cell, so the weights are registered only once.

    A graph reads the memory that a parameter had when the graph was compiled. ``ops.assign`` and
    ``Parameter.copy_`` write to it. ``Parameter.set_data``, ``load_param_into_net`` and others
    give the parameter new memory, which the graph never sees. So before each pass, the values of
    every parameter that has moved are copied to the memory that the graphs read, and the parameter
    is moved back there.
    """

    def __init__(self, model: nn.Cell) -> None:
        check_mindspore()
        self._slots = [
            (name, cell._params, name.rpartition(".")[2])
            for path, cell in model.cells_and_names()
            for name in (f"{path}.{leaf}".lstrip(".") for leaf in cell._params)
        ]
        self._addresses: list[int] = []
        self._memory: list[Tensor] = []  # what the graphs read
        self._settled = False  # whether all of it has reached its final place
        self.moves = 0  # how many times a parameter was moved back

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside the block, only this thread uses MindSpore, and graphs read the current weights.

        Raises InputError for a parameter that got another shape or type after the first pass.
        """
        with one_at_a_time:
            self._follow()
            try:
                yield
            finally:
                self._remember()

    def _parameters(self) -> list[Parameter]:
        return [parameters[leaf] for _, parameters, leaf in self._slots]

    def _follow(self) -> None:
        parameters = self._parameters()
        addresses = [memory_address(parameter) for parameter in parameters]
        if not self._addresses or addresses == self._addresses:
            return
        for i, parameter in enumerate(parameters):
            memory = self._memory[i]
            if addresses[i] == self._addresses[i]:
                continue
            found, expected = ((p.shape, p.dtype) for p in (parameter, memory))
            if found != expected:
                raise InputError(
                    f"{self._slots[i][0]} is {found[1]} of shape {found[0]}; expected "
                    f"{expected[1]} of shape {expected[0]}, as when the model first ran"
                )
            if not _on_device(memory):
                continue
            memory.copy_(parameter)
            parameter.set_data(memory)
            self.moves += 1

    def _remember(self) -> None:
        if self._settled:
            return
        parameters = self._parameters()
        self._addresses = [memory_address(parameter) for parameter in parameters]
        self._memory = [memory_of(parameter) for parameter in parameters]
        self._settled = all(_on_device(memory) for memory in self._memory)


def _on_device(memory: Tensor) -> bool:
    """Whether a graph may have read it: the first one to do so moves it to the device."""
    return is_on_device(memory) if on_cpu() else memory.device != "CPU"
