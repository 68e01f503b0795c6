"""A model's weights in a few flat arrays, for a device where every kernel costs a launch.

The optimizer then updates two arrays instead of hundreds. Products read a copy of the matrices in
their own type (mixed precision, arXiv:1710.03740), so that no product casts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn, ops
from var_transformer import Transformer

from var_train.parallel.gradients import AveragedGradient

Given: TypeAlias = tuple[Tensor, ...]
# of the gradients of matrices, so that all but the last overlap with the backward pass
_EXCHANGES = 4


class OwnWeights(nn.Cell):
    """The weights of ``model`` as they are, with the methods of ``FlatWeights``."""

    averages = False

    def __init__(self, model: Transformer, decays: Callable[[Parameter], bool]) -> None:
        super().__init__(auto_prefix=False)
        self.masters = self.trained = ParameterTuple(model.trainable_params())
        self.is_decayed = decays

    def construct(self) -> tuple[Given, ...]:
        return ()

    def gradients(self, of_trained: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return of_trained

    def refresh(self, updated: Tensor) -> Tensor:
        return updated

    def publish(self) -> None:
        pass

    collect = publish

    def named(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return arrays

    flattened = named


class FlatWeights(nn.Cell):
    """The weights of ``model``: float32 masters, and what its training pass reads.

    ``masters`` are what the optimizer updates: the decayed weights, in one or more pieces, then all
    others. ``trained`` are what gradients are taken of: the decayed weights, almost all of them
    matrices of products, in the products' type, and the others, which are the masters themselves.
    The parameters of the model stay as they are until ``publish``.
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
        super().__init__(auto_prefix=False)
        self.model_parameters = list(model.trainable_params())
        outside, *parts = model.weights()
        depth = len(parts) // 2
        # a block's gradients come together, with those of its modulation
        order = [outside, *(p for i in range(depth) for p in (parts[i], parts[depth + i]))]
        every = [p for part in order for p in part]
        self.decayed = [p for p in every if decays(p)]
        # biases are read in the type of products, tables and scales in float32
        self.biases = [p for p in every if not decays(p) and p.ndim == 1]
        self.rest = [p for p in every if not decays(p) and p.ndim > 1]
        layout = [*self.decayed, *self.biases, *self.rest]
        index = {p.name: n for n, p in enumerate(layout)}
        self.parts = tuple(tuple(index[p.name] for p in part) for part in (outside, *parts))
        self.shapes = tuple(tuple(p.shape) for p in layout)
        self.dtype = dtype
        self.bias_sizes, self.rest_sizes = _sizes(self.biases), _sizes(self.rest)
        self.ends = (sum(self.bias_sizes), sum(self.rest_sizes))
        chunks = _chunks(self.decayed, _EXCHANGES if averages else 1)
        self.chunk_sizes = tuple(_sizes(chunk) for chunk in chunks)
        self.chunk_ends = tuple(sum(sizes) for sizes in self.chunk_sizes)
        self.averages = averages
        self.averaged = AveragedGradient()

        matrices, others = self._joined(_arrays(self.model_parameters))
        cut = np.array_split(matrices, pieces)
        masters = [Parameter(Tensor(piece), f"decayed.{n}") for n, piece in enumerate(cut)]
        self.masters = ParameterTuple([*masters, Parameter(Tensor(others), "undecayed")])
        self.piece_sizes = _sizes(masters)
        self.products = Parameter(Tensor(matrices).astype(dtype), "products")
        self.trained = ParameterTuple([self.products, self.masters[-1]])

    def construct(self) -> tuple[Given, ...]:
        """The arrays of ``model.weights()``, as views of the flat ones."""
        arrays: tuple = ()
        chunks = mint.split(self.products, self.chunk_ends, 0)
        for i in range(len(chunks)):
            chunk = self.averaged(chunks[i]) if self.averages else chunks[i]
            arrays = arrays + mint.split(chunk, self.chunk_sizes[i], 0)
        others = self.averaged(self.masters[-1]) if self.averages else self.masters[-1]
        biases, rest = mint.split(others, self.ends, 0)
        arrays = arrays + mint.split(biases.astype(self.dtype), self.bias_sizes, 0)
        arrays = arrays + mint.split(rest, self.rest_sizes, 0)
        given: tuple = ()
        for part in self.parts:
            of_part: tuple = ()
            for n in part:
                of_part = (*of_part, arrays[n].reshape(self.shapes[n]))
            given = (*given, of_part)
        return given

    def gradients(self, of_trained: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Gradients of ``masters`` from those of ``trained``, float32."""
        pieces = mint.split(of_trained[0].astype(ms.float32), self.piece_sizes, 0)
        return (*pieces, of_trained[1])

    def refresh(self, updated: Tensor) -> Tensor:
        """Gives products the masters after an update; returns ``updated``, which depends on it."""
        decayed = self.masters[0] if len(self.piece_sizes) == 1 else ops.concat(self.masters[:-1])
        decayed = ops.depend(decayed, updated)
        return ops.depend(updated, ops.assign(self.products, decayed.astype(self.dtype)))

    def is_decayed(self, master: Parameter) -> bool:
        """Whether weight decay applies to a master."""
        return master.name.startswith("decayed")

    # ------------------------------------------------------------ by name
    def publish(self) -> None:
        """Gives the model's parameters the values of the masters."""
        named = self.named({f".{p.name}": p.asnumpy() for p in self.masters})
        for parameter in self.model_parameters:
            ops.assign(parameter, Tensor(named[f".{parameter.name}"]))

    def collect(self) -> None:
        """Takes the values of the model's parameters."""
        decayed, others = self._joined(_arrays(self.model_parameters))
        pieces = np.array_split(decayed, len(self.piece_sizes))
        for master, array in zip(self.masters, (*pieces, others), strict=True):
            ops.assign(master, Tensor(array))
        ops.assign(self.products, Tensor(decayed).astype(self.dtype))

    def named(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``STEM.NAME`` for each weight, from the ``STEM.NAME`` of each master."""
        found = {}
        for stem in _stems(arrays, "undecayed"):
            pieces = [arrays[f"{stem}{p.name}"] for p in self.masters]
            flat = np.concatenate(pieces)
            for parameter in (*self.decayed, *self.biases, *self.rest):
                found[f"{stem}{parameter.name}"] = flat[: parameter.size].reshape(parameter.shape)
                flat = flat[parameter.size :]
        return found

    def flattened(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inverse of ``named``; all that has no ``STEM.NAME`` for each weight stays."""
        found = dict(arrays)
        for stem in _stems(arrays, self.decayed[0].name):
            if any(f"{stem}{p.name}" not in arrays for p in self.model_parameters):
                continue  # an incomplete file, which is refused by name
            own = {p.name: found.pop(f"{stem}{p.name}") for p in self.model_parameters}
            decayed, others = self._joined(own)
            pieces = np.array_split(decayed, len(self.piece_sizes))
            for master, array in zip(self.masters, (*pieces, others), strict=True):
                found[f"{stem}{master.name}"] = array
        return found

    def _joined(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [
            np.concatenate([arrays[p.name].reshape(-1) for p in group])
            for group in (self.decayed, self.biases + self.rest)
        ]


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
    return OwnWeights(model, decays)


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
