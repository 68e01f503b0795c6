"""A model's weights in a few flat arrays, for a device where every kernel costs a launch.

The optimizer then updates two arrays instead of hundreds. A transformer's products read a copy of
the matrices in their own type (mixed precision, arXiv:1710.03740), so that no product casts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from var_tokenizer import layout
from var_transformer import Transformer

from var_train.operators import store
from var_train.parallel.gradients import AveragedGradient
from var_train.training.checkpoints import ArraysOnDemand

Given: TypeAlias = tuple[Tensor, ...]
# of the gradients of matrices, so that all but the last overlap with the backward pass
_EXCHANGES = 4


_ravel = ops.MultitypeFuncGraph("ravel")
_store = ops.MultitypeFuncGraph("store")


@_ravel.register("Tensor")
def _ravelled(array: Tensor) -> Tensor:
    return array.reshape(-1)


@_store.register("Tensor", "Tensor")
def _stored(parameter: Parameter, values: Tensor) -> Tensor:
    return store(parameter, values.reshape(parameter.shape))


class OwnWeights(nn.Cell):
    """Weights as they are, with the methods of ``FlatWeights`` and ``JoinedWeights``."""

    averages = False

    def __init__(
        self, parameters: Sequence[Parameter], decays: Callable[[Parameter], bool]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.masters = self.trained = ParameterTuple(parameters)
        self.is_decayed = decays

    def construct(self) -> tuple[Given, ...]:
        return ()

    def gradients(self, of_trained: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return of_trained

    of_masters = gradients

    def refresh(self, updated: Tensor) -> Tensor:
        return updated

    def publish(self) -> None:
        pass

    collect = publish

    def named(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return arrays

    flattened = named


class _FlatMasters(nn.Cell):
    """What the optimizer updates: the decayed weights, in one or more pieces, then all others."""

    def __init__(
        self, decayed: Sequence[Parameter], others: Sequence[Parameter], pieces: int = 1
    ) -> None:
        super().__init__(auto_prefix=False)
        self.decayed, self.others = list(decayed), list(others)
        self.shapes = tuple(tuple(p.shape) for p in (*decayed, *others))
        self.split = layout.parts()
        flat_decayed, flat_others = self._joined(_arrays([*decayed, *others]))
        cut = np.array_split(flat_decayed, pieces)
        masters = [Parameter(Tensor(piece), f"decayed.{n}") for n, piece in enumerate(cut)]
        self.flat = [*masters, Parameter(Tensor(flat_others), "undecayed")]
        self.masters = ParameterTuple(self.flat)
        self.piece_sizes = _sizes(masters)

    def is_decayed(self, master: Parameter) -> bool:
        """Whether weight decay applies to a master."""
        return master.name.startswith("decayed")

    def named(self, arrays: Mapping[str, np.ndarray]) -> ArraysOnDemand:
        """``STEM.NAME`` for each weight, from the ``STEM.NAME`` of each master; the rest stays.

        Asked for in order, they ask for one master after another, and keep the last.
        """
        makers: dict[str, Callable[[], np.ndarray]] = {}
        masters: set[str] = set()
        for stem in _stems(arrays, "undecayed"):
            names = [f"{stem}{p.name}" for p in self.flat]
            masters |= set(names)
            pieces, end = _Pieces(arrays, names, _sizes(self.flat)), 0
            for parameter in (*self.decayed, *self.others):
                shape = tuple(parameter.shape)
                makers[f"{stem}{parameter.name}"] = partial(pieces.part, end, shape)
                end += int(parameter.size)
        others = {name: partial(arrays.__getitem__, name) for name in arrays if name not in masters}
        return ArraysOnDemand(others | makers)

    def flattened(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inverse of ``named``; all that has no ``STEM.NAME`` for each weight stays."""
        found, weights = dict(arrays), (*self.decayed, *self.others)
        for stem in _stems(arrays, self.decayed[0].name):
            if any(f"{stem}{p.name}" not in arrays for p in weights):
                continue  # an incomplete file, which is refused by name
            decayed, others = self._joined({p.name: found.pop(f"{stem}{p.name}") for p in weights})
            pieces = np.array_split(decayed, len(self.piece_sizes))
            for master, array in zip(self.flat, (*pieces, others), strict=True):
                found[f"{stem}{master.name}"] = array
        return found

    def collect(self) -> None:
        """Takes the values of the model's parameters."""
        decayed, others = self._joined(_arrays((*self.decayed, *self.others)))
        pieces = np.array_split(decayed, len(self.piece_sizes))
        for master, array in zip(self.flat, (*pieces, others), strict=True):
            ops.assign(master, Tensor(array))

    def _joined(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [
            np.concatenate([arrays[p.name].reshape(-1) for p in group])
            for group in (self.decayed, self.others)
        ]


class JoinedWeights(_FlatMasters):
    """Weights that a model reads itself, and whose update is that of two arrays.

    ``trained`` are copies of ``masters``, but for those that something else changes, too: these are
    masters themselves.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        decays: Callable[[Parameter], bool],
        apart: Sequence[Parameter] = (),
    ) -> None:
        """apart: what something else changes."""
        joined = [p for p in parameters if all(p is not other for other in apart)]
        super().__init__([p for p in joined if decays(p)], [p for p in joined if not decays(p)])
        self.masters = ParameterTuple([*self.flat, *apart])
        self.copies = ParameterTuple([*self.decayed, *self.others])
        self.trained = ParameterTuple([*self.copies, *apart])
        self.ends = len(self.decayed), len(joined)
        self.sizes = _sizes(self.decayed), _sizes(self.others)
        self.decays_apart = {p.name for p in apart if decays(p)}
        self.map = ops.HyperMap()

    def is_decayed(self, master: Parameter) -> bool:
        return super().is_decayed(master) or master.name in self.decays_apart

    def gradients(self, of_trained: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients of ``masters`` from those of ``trained``."""
        rows = self.map(_ravel, of_trained[: self.ends[1]])
        flat = ops.concat(rows[: self.ends[0]]), ops.concat(rows[self.ends[0] :])
        return (*flat, *of_trained[self.ends[1] :])

    def refresh(self, updated: Tensor) -> Tensor:
        """Copies the masters after an update; returns ``updated``, which depends on it."""
        parts: tuple = ()
        for i in range(2):
            parts = parts + self.split(ops.depend(self.masters[i], updated), self.sizes[i], 0)
        return ops.depend(updated, self.map(_store, self.copies, parts))


class FlatWeights(_FlatMasters):
    """The weights of ``model``: float32 masters, and what its training pass reads.

    ``trained`` are what gradients are taken of: the decayed weights, almost all of them matrices of
    products, in the products' type, and the others, which are masters themselves. The parameters of
    the model stay as they are until ``publish``.
    """

    def __init__(
        self,
        model: Transformer,
        decays: Callable[[Parameter], bool],
        dtype: ms.Type,
        averages: bool,
        pieces: int = 1,
    ) -> None:
        """decays: whether weight decay applies, as to all matrices of products.

        averages: whether gradients are averaged over the workers as they are computed. pieces: of
        the decayed weights, of equal size.
        """
        outside, *parts = model.weights()
        depth = len(parts) // 2
        # a block's gradients come together, with those of its modulation
        order = [outside, *(p for i in range(depth) for p in (parts[i], parts[depth + i]))]
        every = [p for part in order for p in part]
        # biases are read in the type of products, tables and scales in float32
        biases = [p for p in every if not decays(p) and p.ndim == 1]
        rest = [p for p in every if not decays(p) and p.ndim > 1]
        super().__init__([p for p in every if decays(p)], [*biases, *rest], pieces)
        self.model_parameters = list(model.trainable_params())
        index = {p.name: n for n, p in enumerate((*self.decayed, *self.others))}
        self.parts = tuple(tuple(index[p.name] for p in part) for part in (outside, *parts))
        self.dtype = dtype
        self.bias_sizes, self.rest_sizes = _sizes(biases), _sizes(rest)
        self.ends = (sum(self.bias_sizes), sum(self.rest_sizes))
        chunks = _chunks(self.decayed, _EXCHANGES if averages else 1)
        self.chunk_sizes = tuple(_sizes(chunk) for chunk in chunks)
        self.chunk_ends = tuple(sum(sizes) for sizes in self.chunk_sizes)
        self.averages = averages
        self.averaged = AveragedGradient()

        decayed = np.concatenate([p.asnumpy() for p in self.flat[:-1]])
        self.products = Parameter(Tensor(decayed).astype(dtype), "products")
        self.trained = ParameterTuple([self.products, self.masters[-1]])

    def construct(self) -> tuple[Given, ...]:
        """The arrays of ``model.weights()``, as views of the flat ones."""
        arrays: tuple = ()
        chunks = self.split(self.products, self.chunk_ends, 0)
        for i in range(len(chunks)):
            chunk = self.averaged(chunks[i]) if self.averages else chunks[i]
            arrays = arrays + self.split(chunk, self.chunk_sizes[i], 0)
        others = self.averaged(self.masters[-1]) if self.averages else self.masters[-1]
        biases, rest = self.split(others, self.ends, 0)
        arrays = arrays + self.split(biases.astype(self.dtype), self.bias_sizes, 0)
        arrays = arrays + self.split(rest, self.rest_sizes, 0)
        given: tuple = ()
        for part in self.parts:
            of_part: tuple = ()
            for n in part:
                of_part = (*of_part, arrays[n].reshape(self.shapes[n]))
            given = (*given, of_part)
        return given

    def gradients(self, of_trained: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Those of ``trained`` in float32."""
        return of_trained[0].astype(ms.float32), of_trained[1]

    def of_masters(self, gradients: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Gradients of ``masters`` from what ``gradients`` gives."""
        return (*self.split(gradients[0], self.piece_sizes, 0), gradients[1])

    def refresh(self, updated: Tensor) -> Tensor:
        """Gives products the masters after an update; returns ``updated``, which depends on it."""
        decayed = self.masters[0] if len(self.piece_sizes) == 1 else ops.concat(self.masters[:-1])
        decayed = ops.depend(decayed, updated)
        return ops.depend(updated, store(self.products, decayed.astype(self.dtype)))

    def publish(self) -> None:
        """Gives the model's parameters the values of the masters."""
        named = self.named({f".{p.name}": p.asnumpy() for p in self.masters})
        for parameter in self.model_parameters:
            ops.assign(parameter, Tensor(named[f".{parameter.name}"]))

    def collect(self) -> None:
        """Takes the values of the model's parameters."""
        super().collect()
        decayed = np.concatenate([p.asnumpy() for p in self.flat[:-1]])
        ops.assign(self.products, Tensor(decayed).astype(self.dtype))


class _Pieces:
    """A flat array that lies in several, the last of which to be asked for is kept."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], names: Sequence[str], sizes: Sequence[int]
    ) -> None:
        self._arrays, self._names = arrays, names
        self._begins = np.cumsum((0, *sizes))
        self._number, self._piece = -1, np.zeros(0, np.float32)

    def part(self, begin: int, shape: tuple[int, ...]) -> np.ndarray:
        """What begins at ``begin``, in this shape."""
        end = begin + math.prod(shape)
        parts = []
        while begin < end:
            number = int(np.searchsorted(self._begins, begin, side="right")) - 1
            if number != self._number:
                self._number, self._piece = number, self._arrays[self._names[number]]
            first = int(self._begins[number])
            parts.append(self._piece[begin - first : end - first])
            begin += len(parts[-1])
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)


def _stems(arrays: Mapping[str, np.ndarray], name: str) -> list[str]:
    """What stands before ``name``, a dot at its end, in names of ``arrays``."""
    return [key.removesuffix(name) for key in arrays if key.endswith(f".{name}")]


def weights_in_training(
    model: Transformer,
    decays: Callable[[Parameter], bool],
    dtype: ms.Type,
    averages: bool,
    pieces: int,
) -> OwnWeights | FlatWeights:
    """Flat on an Ascend, whose host dispatches one kernel after another; see ``FlatWeights``."""
    if ms.get_context("device_target") == "Ascend":
        return FlatWeights(model, decays, dtype, averages, pieces)
    return OwnWeights(list(model.trainable_params()), decays)


def joined_in_training(
    parameters: Sequence[Parameter],
    decays: Callable[[Parameter], bool],
    apart: Sequence[Parameter],
) -> OwnWeights | JoinedWeights:
    """Joined on an Ascend; see ``JoinedWeights``."""
    if ms.get_context("device_target") == "Ascend":
        return JoinedWeights(parameters, decays, apart)
    return OwnWeights(parameters, decays)


def _arrays(parameters: Sequence[Parameter]) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy() for p in parameters}


def _sizes(parameters: Sequence[Parameter]) -> tuple[int, ...]:
    return tuple(int(p.size) for p in parameters)


def _chunks(parameters: list[Parameter], count: int) -> list[list[Parameter]]:
    """``count`` chunks of neighbours, of about equal size."""
    middles = np.cumsum(_sizes(parameters)) - np.array(_sizes(parameters)) / 2
    numbers = (middles * count / sum(_sizes(parameters))).astype(int)
    chunks = [[p for p, n in zip(parameters, numbers, strict=True) if n == i] for i in range(count)]
    return [chunk for chunk in chunks if chunk]
