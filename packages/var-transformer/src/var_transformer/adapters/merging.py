"""Adapters added to the weights of a model, several at once: what a generation computes with."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from var_tokenizer.common import InputError, quoted, weights_checksum

from var_transformer.adapters.adapter import Adapter
from var_transformer.model.checks import check_class_names
from var_transformer.model.transformer import Transformer

log = logging.getLogger("var_transformer")


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter, and what its products are multiplied by."""

    adapter: Adapter
    weight: float = 1.0


def merge_adapters(model: Transformer, adapters: Sequence[WeightedAdapter]) -> None:
    """Adds adapters to the weights of a model that has not run yet, in place.

    A weight W becomes W + sum of weight * scale * B A, rounded once. Embeddings of classes are
    taken as they are, whatever the weight; new classes come after the model's own, in the order of
    the adapters. If the model's classes have no names, their numbers become their names then.

    Raises InputError, before anything is changed, for an adapter of another architecture or
    another tokenizer, two that train the same class, and a class that the model has already.
    """
    _check(model, adapters)
    _merge_classes(model, [weighted.adapter for weighted in adapters])
    merge_products(model, adapters)


def merge_products(model: Transformer, adapters: Sequence[WeightedAdapter]) -> None:
    """The affine maps of ``merge_adapters``, of adapters that fit; graphs see the new weights."""
    parameters = {name: parameter for name, parameter in model.parameters_and_names()}
    for module in dict.fromkeys(name for each in adapters for name in each.adapter.pairs):
        parameter = parameters[f"{module}.weight"]
        total_oi = parameter.asnumpy().astype(np.float64)
        for each in adapters:
            if module in each.adapter.pairs:
                total_oi += each.weight * each.adapter.pairs[module].product()
        with np.errstate(over="ignore"):
            weight_oi = total_oi.astype(np.float32)
        if not np.isfinite(weight_oi).all():
            sources = ", ".join(each.adapter.source for each in adapters)
            raise InputError(
                f"{sources}: added to {module}.weight it is not finite; expected smaller weights"
            )
        ops.assign(parameter, Tensor(weight_oi))


def _check(model: Transformer, adapters: Sequence[WeightedAdapter]) -> None:
    base = checksum_of(model) if any(each.adapter.base for each in adapters) else None
    names = set(names_of_classes(model))
    for each in adapters:
        adapter, known = each.adapter, model.tokenizer_checksum
        adapter.check_fits(model.config)
        if adapter.tokenizer and known and adapter.tokenizer != known:
            raise InputError(
                f"{adapter.source}: was trained on tokens of {adapter.tokenizer}, and the model on "
                f"those of {known}; expected the same tokenizer"
            )
        if adapter.base and adapter.base != base:
            log.warning(
                "%s: was trained beside other weights than these, for which it may not be good",
                adapter.source,
            )
        for name in adapter.class_names:
            if name in names:
                raise InputError(
                    f"{adapter.source}: brings the class {quoted(name)}, which the model has "
                    "already; expected the model that it was trained from"
                )
    _check_classes([each.adapter for each in adapters])


def _check_classes(adapters: Sequence[Adapter]) -> None:
    """Raises InputError if two adapters train the embedding of a class."""
    sources: dict[int | str, str] = {}
    for adapter in adapters:
        if adapter.table_nc is not None:
            keys: tuple[int | str, ...] = tuple(range(len(adapter.table_nc)))
        else:
            keys = (*adapter.replaced_rows, *adapter.class_names)
        for key in keys:
            if key in sources:
                raise InputError(
                    f"{sources[key]} and {adapter.source}: both train the class "
                    f"{quoted(str(key))}; expected one of them"
                )
            sources[key] = adapter.source


def _merge_classes(model: Transformer, adapters: Sequence[Adapter]) -> None:
    table_nc = model.class_emb.weight.asnumpy().copy()
    count, names = model.config.num_classes, []
    rows_mc = [table_nc[:0]]
    for adapter in adapters:
        if adapter.table_nc is not None:
            table_nc = np.concatenate([adapter.table_nc[:count], adapter.table_nc[-1:]])
            rows_mc.append(adapter.table_nc[count:-1])
            names += [str(n) for n in range(count, len(adapter.table_nc) - 1)]
    for adapter in adapters:
        for number, row_c in adapter.replaced_rows.items():
            table_nc[number] = row_c
        if adapter.class_rows_mc is not None:
            rows_mc.append(adapter.class_rows_mc)
            names += adapter.class_names
    ops.assign(model.class_emb.weight, Tensor(table_nc))
    if names:
        add_classes(model, tuple(names), np.concatenate(rows_mc))


def add_classes(model: Transformer, names: tuple[str, ...], rows_mc: np.ndarray) -> None:
    """Gives a model that has not run yet further classes, behind its own, in place.

    rows_mc: (M, C), their embeddings.
    """
    count = model.config.num_classes
    old_nc = model.class_emb.weight.asnumpy()
    table_nc = np.concatenate([old_nc[:-1], rows_mc.astype(np.float32), old_nc[-1:]])
    own = names_of_classes(model)
    model.class_emb.weight = Parameter(Tensor(table_nc, ms.float32), "class_emb.weight")
    model.config = replace(model.config, num_classes=count + len(names))
    model.class_names = check_class_names([*own, *names], count + len(names))


def names_of_classes(model: Transformer) -> tuple[str, ...]:
    """The names of the classes; their numbers, if they have none."""
    return model.class_names or tuple(map(str, range(model.config.num_classes)))


def checksum_of(model: Transformer) -> str:
    """That of the weights, as ``var-convert inspect`` shows it."""
    return weights_checksum(
        (name, tuple(parameter.shape), _array(parameter))
        for name, parameter in model.parameters_and_names()
    )


def _array(parameter: Parameter) -> Iterator[np.ndarray]:
    yield parameter.asnumpy()  # when it is asked for: all copies at once would be a second model
