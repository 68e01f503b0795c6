"""Training by low rank: linear(x, W, b) + scale * (x A^T) B^T, with W and b as they are.

No gradient of the base is computed, and no copy of it is kept. Cells that compute so take the
places of some operators of a model, whose own code stays as it is.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from var_transformer.adapters.adapter import Adapter, Pair
from var_transformer.adapters.merging import (
    WeightedAdapter,
    add_classes,
    checksum_of,
    merge_products,
)
from var_transformer.adapters.targets import LoraConfig, targeted
from var_transformer.model import operators as fast
from var_transformer.model.block import FeedForward, Linear
from var_transformer.model.transformer import Transformer

_STREAM = 24  # random stream under the seed


class _FrozenKernel(nn.Cell):
    """The kernel of an affine map whose weights have no gradient."""

    def __init__(self, forward: ops.Primitive) -> None:
        super().__init__()
        self.forward = forward
        self.matmul = ops.MatMul()

    def construct(self, x: Tensor, weight_oi: Tensor, bias_o: Tensor) -> Tensor:
        return self.forward(x, weight_oi, bias_o)

    def bprop(
        self, x: Tensor, weight_oi: Tensor, bias_o: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.matmul(dout.reshape(-1, weight_oi.shape[0]), weight_oi)
        # nobody reads these zeros, so the compiler leaves them out
        return rows.reshape(x.shape), ops.zeros_like(weight_oi), ops.zeros_like(bias_o)


class _LowRankLinear(nn.Cell):
    """``fast.Linear`` with a pair beside it."""

    def __init__(self, linear: fast.Linear, down: Parameter, up: Parameter, scale: float) -> None:
        super().__init__(auto_prefix=False)
        self.linear, self.down_ri, self.up_or = linear, down, up
        self.scale, self.dtype = scale, linear.dtype
        self.matmul_nt = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor, weight_oi: Tensor, bias_o: Tensor) -> Tensor:
        out = self.linear(x, weight_oi, bias_o)
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        rows = self.matmul_nt(rows, self.down_ri.astype(self.dtype))
        rows = self.matmul_nt(rows, self.up_or.astype(self.dtype)) * self.scale
        return out + rows.astype(out.dtype).reshape(out.shape)


class _NewRows(nn.Cell):
    """``fast.Rows`` of a table whose rows from ``first`` on are those of ``rows_mc`` instead."""

    def __init__(self, rows: fast.Rows, rows_mc: Parameter, first: int) -> None:
        super().__init__(auto_prefix=False)
        self.rows, self.rows_mc = rows, rows_mc
        self.first, self.count = first, rows_mc.shape[0]

    def construct(self, table_nc: Tensor, ids: Tensor) -> Tensor:
        places = ids - self.first
        is_new = ops.logical_and(places >= 0, places < self.count).expand_dims(-1)
        places = ops.clamp(places, 0, self.count - 1)
        return ops.select(
            ops.broadcast_to(is_new, (*ids.shape, table_nc.shape[-1])),
            self.rows(self.rows_mc, places),
            self.rows(table_nc, ids),
        )


class LowRankWeights:
    """The weights of a model that LoRA trains, and their places in it.

    ``parameters``: A and B of each target, named NAME.lora_A.weight and NAME.lora_B.weight, then
    the embeddings of new classes, if there are any, named class_emb.new.
    """

    def __init__(
        self, model: Transformer, config: LoraConfig, seed: int, new_classes: tuple[str, ...] = ()
    ) -> None:
        """Gives ``model``, which has not run yet, pairs that change nothing at first, and classes.

        A is drawn as ``peft`` does, B is zero. New classes start from the embedding of "no class".
        Raises InputError for a target that matches nothing.
        """
        config.check(model.config)
        self._model, self._config, self._names = model, config, new_classes
        self.num_classes, self._base = model.config.num_classes, checksum_of(model)
        self._owners = _linear_owners(model)
        self._pairs: dict[str, tuple[Parameter, Parameter]] = {}
        self._scale = config.alpha / config.rank
        rng = np.random.default_rng((seed, _STREAM))
        for name, (outputs, inputs) in targeted(model.config, config.targets).items():
            bound = 1 / math.sqrt(inputs)  # of kaiming_uniform with a = sqrt(5)
            drawn_ri = rng.uniform(-bound, bound, (config.rank, inputs)).astype(np.float32)
            zeros_or = np.zeros((outputs, config.rank), np.float32)
            self._pairs[name] = (
                Parameter(Tensor(drawn_ri), f"{name}.lora_A.weight"),
                Parameter(Tensor(zeros_or), f"{name}.lora_B.weight"),
            )
        self.parameters = [parameter for pair in self._pairs.values() for parameter in pair]
        self._rows_mc: Parameter | None = None
        if new_classes:
            no_class_c = model.class_emb.weight.asnumpy()[-1]
            rows_mc = np.repeat(no_class_c[None], len(new_classes), 0)
            add_classes(model, new_classes, rows_mc)
            self._rows_mc = Parameter(Tensor(rows_mc), "class_emb.new")
            self.parameters.append(self._rows_mc)
        self._cells = {
            name: _LowRankLinear(self._owners[name].linear, *pair, self._scale)
            for name, pair in self._pairs.items()
        }
        self._plain = {name: self._owners[name].linear for name in self._pairs}
        self._rows, self._gelus = model.class_emb.rows, _recomputed_gelus(model)
        for linear in _linears(model):
            if linear.kernel is not None:
                linear.kernel = _FrozenKernel(linear.kernel.forward)
        self._attach()

    @property
    def share(self) -> float:
        """The share of all parameters that is trained, 0 to 1."""
        trained = sum(p.size for p in self.parameters)
        return trained / sum(p.size for p in self._model.get_parameters())

    def adapter(self) -> Adapter:
        """What is trained, as it is now."""
        pairs = {
            name: Pair(down.asnumpy().copy(), up.asnumpy().copy(), self._scale)
            for name, (down, up) in self._pairs.items()
        }
        rows_mc = None if self._rows_mc is None else self._rows_mc.asnumpy().copy()
        return Adapter(
            *("the adapter in training", pairs, self._names, rows_mc),
            base=self._base,
            tokenizer=self._model.tokenizer_checksum,
        )

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside the block the model has the sum as its weights, for generations.

        Memory holds a copy of the targeted weights and of the embeddings of classes meanwhile, by
        which they are as before, bit for bit, afterwards: a model that shares them goes on.
        """
        parameters = {name: parameter for name, parameter in self._model.parameters_and_names()}
        targets = [parameters[f"{name}.weight"] for name in (*self._pairs, "class_emb")]
        before = [parameter.asnumpy().copy() for parameter in targets]
        self.finish()
        try:
            yield
        finally:
            for parameter, weight_oi in zip(targets, before, strict=True):
                ops.assign(parameter, Tensor(weight_oi))
            self._attach()

    def finish(self) -> None:
        """Leaves the model with the sum as its weights, for good."""
        for name, linear in self._plain.items():
            self._owners[name].linear = linear
        for gelu_linear, recomputed in self._gelus:
            gelu_linear.recomputed = recomputed
        self._model.class_emb.rows = self._rows
        merge_products(self._model, [WeightedAdapter(self.adapter())])
        if self._rows_mc is not None:
            table_nc = self._model.class_emb.weight.asnumpy().copy()
            table_nc[self.num_classes : -1] = self._rows_mc.asnumpy()
            ops.assign(self._model.class_emb.weight, Tensor(table_nc))

    def _attach(self) -> None:
        for name, cell in self._cells.items():
            self._owners[name].linear = cell
        for gelu_linear, _ in self._gelus:
            gelu_linear.recomputed = None  # it would compute by the weights alone
        if self._rows_mc is not None:
            self._model.class_emb.rows = _NewRows(self._rows, self._rows_mc, self.num_classes)
        for parameter, name in zip(self.parameters, self._parameter_names(), strict=True):
            parameter.name = name  # a cell renames the parameters of what becomes a part of it

    def _parameter_names(self) -> list[str]:
        names = [f"{name}.lora_{kind}.weight" for name in self._pairs for kind in "AB"]
        return names + ["class_emb.new"] * (self._rows_mc is not None)


def _linears(model: Transformer) -> list[fast.Linear]:
    return [cell for _, cell in model.cells_and_names() if isinstance(cell, fast.Linear)]


def _linear_owners(model: Transformer) -> dict[str, nn.Cell]:
    """The name of each affine map, and the cell that calls its operator as ``linear``."""
    owners: dict[str, nn.Cell] = {}
    for name, cell in model.cells_and_names():
        if isinstance(cell, Linear):
            owners.setdefault(name, cell)
        elif isinstance(cell, FeedForward):
            owners[f"{name}.fc2"] = cell.gelu_linear
    return owners


def _recomputed_gelus(model: Transformer) -> list[tuple[fast.GeluLinear, nn.Cell | None]]:
    gelus = [c for _, c in model.cells_and_names() if isinstance(c, fast.GeluLinear)]
    return [(cell, cell.recomputed) for cell in gelus]
