"""Whether two files hold the same model."""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from var_tokenizer import Scale
from var_tokenizer.common import InputError, quoted

from var_convert.architecture import Architecture
from var_convert.conversion import Progress
from var_convert.formats.dispatch import is_pytorch
from var_convert.formats.dtypes import LONG_NAMES, widen
from var_convert.formats.weights import Entry
from var_convert.hub import local_file
from var_convert.opened_model import OpenedModel, open_model, tell_assumptions
from var_convert.parity import ForwardDifference, compare_forward


@dataclass(frozen=True)
class TensorDifference:
    """largest: the largest absolute difference of two elements; infinite if only one side has a
    NaN, or if the tensor is missing on one side or has another shape.
    """

    name: str
    largest: float
    a: str  # dtype and shape in the first file, "-" if it is missing
    b: str


@dataclass(frozen=True)
class Verification:
    """architecture: one line for each field that differs. forward: None if not asked for."""

    kind: str
    architecture: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    forward: ForwardDifference | None = None

    @property
    def largest(self) -> float:
        """The largest difference of all tensors."""
        return max(tensor.largest for tensor in self.tensors)

    def agrees(self, tolerance: float = 0.0) -> bool:
        """Same architecture, tensors within ``tolerance``, and forward passes that agree."""
        same = not self.architecture and self.largest <= tolerance
        return same and (self.forward is None or self.forward.agrees)


def verify(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    only: str | None = None,
    scales: Sequence[Scale] | None = None,
    heads: int | None = None,
    using_znorm: bool = False,
    key: str | None = None,
    forward: bool = False,
    progress: Progress = lambda done, total: None,
) -> Verification:
    """Compares two files tensor by tensor, and with ``forward`` by what their models compute.

    Formats and element types may differ; values are compared as numbers. ``forward`` runs the
    ``.pth`` side (or else ``a``) in PyTorch and the other in MindSpore, on the same random input.
    key: which model of ``a``, if it holds several.

    Raises InputError for unusable files, files of different kinds, and for ``forward`` without
    PyTorch or of different architectures.
    """
    paths = [local_file(path) for path in (a, b)]
    models = [
        open_model(path, only, scales, heads, using_znorm, of)
        for path, of in zip(paths, (key, None), strict=True)
    ]
    if models[0].kind != models[1].kind:
        raise InputError(
            f"{quoted(b)}: holds a {models[1].kind}; expected a {models[0].kind} as in {quoted(a)}"
        )
    model_a, model_b = _fill_in(models[0], models[1]), _fill_in(models[1], models[0])
    differing = _architecture_differences(model_a, model_b)
    tensors = _compare_tensors(model_a, model_b, progress)
    result = Verification(model_a.kind, differing, tensors)
    if not forward:
        return result
    if differing:
        raise InputError(
            f"{quoted(b)}: {differing[0]}; expected the architecture of {quoted(a)} for --forward"
        )
    b_alone_is_pth = is_pytorch(paths[1]) and not is_pytorch(paths[0])
    torch_side, other = (model_b, model_a) if b_alone_is_pth else (model_a, model_b)
    tell_assumptions(torch_side)
    return replace(result, forward=compare_forward(torch_side, other))


def _fill_in(model: OpenedModel, other: OpenedModel) -> OpenedModel:
    """What ``model`` had to assume, taken from the other file if that knows."""
    known = model.architecture.assumed - other.architecture.assumed
    fields = {field: getattr(other.config, field) for field in known}
    if len(fields.get("scales", model.config.scales)) != len(model.config.scales):
        return model
    config = dataclasses.replace(model.config, **fields)
    return replace(model, architecture=Architecture(config, model.architecture.assumed - known))


def _architecture_differences(a: OpenedModel, b: OpenedModel) -> tuple[str, ...]:
    fields = [field.name for field in dataclasses.fields(a.config)]
    values = [(field, getattr(a.config, field), getattr(b.config, field)) for field in fields]
    return tuple(f"{field} is {one} and {two}" for field, one, two in values if one != two)


def _compare_tensors(
    a: OpenedModel, b: OpenedModel, progress: Progress
) -> tuple[TensorDifference, ...]:
    names = list(dict.fromkeys([*a.tensors, *b.tensors]))
    results = []
    for done, name in enumerate(names, 1):
        one, two = a.tensors.get(name), b.tensors.get(name)
        largest = math.inf
        if one and two and one.shape == two.shape:
            largest = largest_difference(one, two)
        results.append(TensorDifference(name, largest, _described(one), _described(two)))
        progress(done, len(names))
    return tuple(results)


def _described(entry: Entry | None) -> str:
    return f"{LONG_NAMES[entry.dtype]} {list(entry.shape)}" if entry else "-"


def largest_difference(one: Entry, two: Entry) -> float:
    """max |one - two| of two tensors of one shape; NaN equals only NaN."""
    largest = 0.0
    for piece_one, piece_two in zip(one.pieces(), two.pieces(), strict=True):
        x = widen(piece_one, one.dtype).astype(np.float64)
        y = widen(piece_two, two.dtype).astype(np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        if not same.all():
            difference = np.abs(x[~same] - y[~same])
            largest = max(largest, float(np.nan_to_num(difference, nan=math.inf).max()))
    return largest
