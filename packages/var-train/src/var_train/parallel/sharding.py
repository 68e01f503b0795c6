"""The optimizer's state, sharded over the workers (ZeRO, stage 1, arXiv:1910.02054).

MindSpore's own optimizer parallelism needs its semi-automatic parallel mode on an Ascend or a GPU;
this needs AllGather alone. Each worker owns some whole parameters, keeps their moments and
updates them; then every worker receives what the others updated.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from var_train.operators import store
from var_train.parallel import workers
from var_train.parallel.gradients import part_like

_ravel = ops.MultitypeFuncGraph("ravel")
_receive = ops.MultitypeFuncGraph("receive")


@_ravel.register("Tensor", "Tensor")
def _ravel_updated(updated: Tensor, parameter: Parameter) -> Tensor:
    return ops.depend(parameter, updated).reshape(-1)


@_receive.register("Tensor", "Tensor", "Number")
def _receive_parameter(collected: Tensor, parameter: Parameter, offset: int) -> Tensor:
    return store(parameter, part_like(parameter, collected, offset))


def deal(sizes: Sequence[int], worker_count: int) -> tuple[int, ...]:
    """The worker of each item: neighbours stay together, and loads are about equal.

    An item belongs to the worker whose equal share of the whole contains the item's middle, so a
    load exceeds that share by less than the largest item.
    """
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    return tuple(int(owner) for owner in middles * worker_count // sum(sizes))


class Sharding(nn.Cell):
    """Which of two or more workers updates which parameters, and the exchange afterwards."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        """parameters: float32, the same on every worker."""
        super().__init__()
        count, rank = workers.size(), workers.rank()
        sizes = [int(p.size) for p in parameters]
        self.owners = deal(sizes, count)
        loads = np.bincount(self.owners, sizes, count).astype(int)
        self.begin = self.owners.index(rank) if rank in self.owners else 0
        self.end = self.begin + self.owners.count(rank)
        # AllGather takes the same length from each worker: the largest load and one zero more
        length = int(loads.max()) + 1
        self.zeros = Tensor(np.zeros(length - loads[rank], np.float32))
        within = np.cumsum(sizes) - sizes  # where each parameter begins among all
        firsts = np.cumsum(loads) - loads
        offsets = [
            int(w - firsts[o] + o * length) for w, o in zip(within, self.owners, strict=True)
        ]
        self.parameters = ParameterTuple(parameters)
        self.own = ParameterTuple(parameters[self.begin : self.end])
        self.others = ParameterTuple([*parameters[: self.begin], *parameters[self.end :]])
        self.offsets = (*offsets[: self.begin], *offsets[self.end :])
        self.map = ops.HyperMap()
        self.collect = ops.AllGather()

    def construct(self, updated: Tensor) -> Tensor:
        """Gives every worker the parameters that the others own; returns ``updated``.

        updated: a tensor that depends on this worker's update.
        """
        flat = self.map(ops.partial(_ravel, updated), self.own)
        collected = self.collect(ops.concat((*flat, self.zeros)))
        done = self.map(ops.partial(_receive, collected), self.others, self.offsets)
        return ops.depend(updated, done)

    def array(self, i: int, own: Sequence[Parameter]) -> np.ndarray:
        """The array of parameter ``i``, taken from its owner's ``own``; every worker must ask."""
        if self.begin <= i < self.end:
            array = own[i - self.begin].asnumpy()
        else:
            array = np.zeros(self.parameters[i].shape, np.float32)
        return workers.broadcast(array, self.owners[i])
