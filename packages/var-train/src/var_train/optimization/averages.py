"""Averaged weights: the exponential moving average (EMA) of a model's parameters."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from var_tokenizer.common import InputError

from var_train.operators import store
from var_train.training.checkpoints import parameter_arrays, restore_parameters

_average = ops.MultitypeFuncGraph("average")


@_average.register("Tensor", "Tensor", "Tensor")
def _average_parameter(keep: Tensor, average: Parameter, parameter: Parameter) -> Tensor:
    return store(average, keep * average + (1 - keep) * parameter)


class Ema(nn.Cell):
    """The exponential moving average of parameters.

    Update ``t`` (0-based) keeps ``min(decay, (1 + t) / (10 + t))`` of it, so that the initial,
    random weights are soon forgotten.
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float) -> None:
        """decay: in (0, 1)."""
        super().__init__()
        self.decay = decay
        self.parameters = ParameterTuple(parameters)
        self.averages = self.parameters.clone("ema", init="same")
        self.map = ops.HyperMap()
        averages, owners, each = self.averages, self.parameters, self.map

        @ms.jit
        def update(keep: Tensor) -> Tensor:
            return ops.depend(keep, each(ops.partial(_average, keep), averages, owners))

        self._update = update

    def update(self, number: int) -> None:
        """Adds the weights after update ``number`` (0-based) to the average.

        A skipped step is not an update: do not pass it here and do not count it.
        """
        keep = min(self.decay, (1 + number) / (10 + number))
        self._update(Tensor(np.float32(keep)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the model the averaged weights inside the block: to validate, sample or save."""
        own = [Tensor(p.asnumpy().copy()) for p in self.parameters]
        self.copy_to_parameters()
        try:
            yield
        finally:
            for parameter, array in zip(self.parameters, own, strict=True):
                ops.assign(parameter, array)

    def copy_to_parameters(self) -> None:
        """Gives the model the averaged weights for good."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            ops.assign(parameter, Tensor(average.asnumpy()))

    def snapshot(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays under ``prefix`` of a ``Snapshot``."""
        return parameter_arrays(prefix, self.averages)

    def restore(self, prefix: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores what ``snapshot`` returned."""
        restore_parameters(prefix, self.averages, arrays)


def averaged(ema: Ema | None) -> AbstractContextManager[None]:
    """``ema.applied()``; without averages the model keeps its own weights."""
    return nullcontext() if ema is None else ema.applied()


def check_averages(decay: float, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises InputError if only one has averages: a run (``decay`` above 0) or its checkpoint.

    A checkpoint of another framework does not say which settings it is from.
    """
    kept = any(name.startswith("ema/") for name in arrays)
    if kept != (decay > 0):
        raise InputError(
            f"ema is {decay}, and the checkpoint has {'' if kept else 'no '}averaged weights; "
            f"expected {'an ema above 0' if kept else '0'}"
        )
