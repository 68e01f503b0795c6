"""The optimizer's state spread over the workers (ZeRO, stage 1, arXiv:1910.02054).

MindSpore's own optimizer parallelism works in its semi-automatic parallel mode on an Ascend or GPU
alone; this needs no more than AllGather. Whole parameters are dealt out: each worker keeps the
moments of its own and updates these, then every worker receives what the others updated.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from var_train import distributed


def deal(sizes: Sequence[int], workers: int) -> tuple[int, ...]:
    """The worker of each item: the largest first, each to whoever has the least by then."""
    loads, owners = [0] * workers, [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owners[item] = loads.index(min(loads))
        loads[owners[item]] += sizes[item]
    return tuple(owners)


class Sharding(nn.Cell):
    """Which of two or more workers updates which parameter, and the exchange afterwards."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        """parameters: float32, the same on every worker."""
        super().__init__()
        workers, rank = distributed.size(), distributed.rank()
        sizes = [int(p.size) for p in parameters]
        self.owners = deal(sizes, workers)
        dealt = [[i for i, owner in enumerate(self.owners) if owner == r] for r in range(workers)]
        loads = [sum(sizes[i] for i in each) for each in dealt]
        self.own = tuple(dealt[rank])
        # What AllGather returns: of each worker its parameters, then zeros up to one length,
        # which is above the largest load because a part of no elements cannot be split off.
        length = max(loads) + 1
        self.order: tuple[int | None, ...] = ()
        self.sizes: list[int] = []
        for each, load in zip(dealt, loads, strict=True):
            self.order += (*each, None)
            self.sizes += [*(sizes[i] for i in each), length - load]
        self.parameters = ParameterTuple(parameters)
        self.zeros = Tensor(np.zeros(length - loads[rank], np.float32))
        self.collect = ops.AllGather()

    def construct(self, updated: Tensor) -> Tensor:
        """Gives every worker the parameters as their owners have them; returns ``updated``.

        updated: a tensor that waits for this worker's update.
        """
        flat = ()
        for i in self.own:
            flat += (ops.depend(self.parameters[i], updated).reshape(-1),)
        parts = ops.split(self.collect(ops.concat((*flat, self.zeros))), self.sizes)
        done = ()
        for i, part in zip(self.order, parts):  # noqa: B905 (MindSpore knows no strict)
            if i is not None and i not in self.own:
                parameter = self.parameters[i]
                done += (ops.assign(parameter, part.reshape(parameter.shape)),)
        return ops.depend(updated, done)

    def all_of(self, own: Sequence[Parameter]) -> Iterator[np.ndarray]:
        """An array for each parameter, from ``own``, those that its owner has; in order.

        Every worker has to go through all of it.
        """
        mine = dict(zip(self.own, own, strict=True))
        for i, owner in enumerate(self.owners):
            shape = self.parameters[i].shape
            array = mine[i].asnumpy() if i in mine else np.zeros(shape, np.float32)
            yield distributed.broadcast(array, owner)
