"""One check: what an operator gives against its definition, and which known mistake explains it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer.common import quoted

from var_transformer.check_ascend.definitions import Array

Definition = Callable[..., Sequence[Array]]

TOLERANCES = {ms.float32: 2e-5, ms.float16: 1e-2, ms.bfloat16: 8e-2}
"""The largest error that a check lets pass, by type; see ``error_of``."""

_LEAST = 0.1  # share of a result that a mistake must define to be recognized by it


@dataclass(frozen=True)
class Check:
    """An operator, arrays for it, and what it should compute of them.

    run: of tensors of ``dtype`` (or of float32, where ``wide`` says so), one tensor of ``shape``.
    names: of the arrays whose gradients are checked, all or none. definition: of float64 arrays and
    the gradient of the result, the result and those gradients. mistakes: the same, each with a
    mistake. compiled: whether it runs as a graph, as models do.
    """

    name: str
    dtype: ms.Type
    run: Callable[..., Tensor]
    arrays: tuple[np.ndarray, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    definition: Definition
    mistakes: Mapping[str, Definition]
    wide: tuple[int, ...] = ()
    compiled: bool = True


@dataclass(frozen=True)
class Finding:
    """What a check found.

    error, allowed: see ``error_of``; error is None if nothing was computed. fault: empty if all
    is well; else which result is wrong and, if one is recognized, the mistake.
    """

    name: str
    dtype: str
    error: float | None
    allowed: float
    fault: str = ""


def error_of(got: Array, expected: Array) -> float:
    """The largest of |got - expected| / (|expected| + its root mean square).

    Where nothing is expected (NaN) anything is right; elsewhere NaN is infinitely wrong.
    """
    defined = ~np.isnan(expected)
    if got.shape != expected.shape or defined.mean() < _LEAST:
        return np.inf
    got, expected = got[defined], expected[defined]
    size = np.abs(expected) + np.sqrt((expected**2).mean())
    error = np.abs(got - expected) / np.maximum(size, np.finfo(np.float64).tiny)
    return float(error.max()) if np.isfinite(got).all() else np.inf


def find(check: Check) -> Finding:
    """Runs a check; whatever the device makes of it, there is a finding."""
    kind, allowed = str(check.dtype).lower(), TOLERANCES[check.dtype]
    try:
        tensors, d_out = inputs(check)
        arrays = [_wide(tensor) for tensor in (*tensors, d_out)]  # the numbers as rounded
        got = _results(check, tensors, d_out)
    except Exception as error:  # the point of a check is that the next one runs
        first = quoted(str(error).strip().partition("\n")[0] or type(error).__name__)
        return Finding(check.name, kind, None, allowed, f"does not run: {first}")
    names = ("the result", *(f"the gradient of {name}" for name in check.names))
    expected = check.definition(*arrays)[: len(names)]
    errors = [error_of(a, b) for a, b in zip(got, expected, strict=True)]
    for i, name in enumerate(names):
        if errors[i] > allowed:
            fault = f"{name} is off by {errors[i]:.2g}: {_explained(check, arrays, got[i], i)}"
            return Finding(check.name, kind, errors[i], allowed, fault)
    return Finding(check.name, kind, max(errors), allowed)


def _explained(check: Check, arrays: Sequence[Array], got: Array, which: int) -> str:
    """The mistake whose result at that place is closest to what came."""
    if not np.isfinite(got).any():
        return "nothing but NaN or infinity"
    errors = {name: error_of(got, f(*arrays)[which]) for name, f in check.mistakes.items()}
    closest = min(errors, key=errors.__getitem__, default="")
    if closest and errors[closest] <= TOLERANCES[check.dtype]:
        return closest
    finite = " (partly NaN or infinity)" if not np.isfinite(got).all() else ""
    return f"no known mistake{finite}"


class _Gradients(nn.Cell):
    """The gradients of ``run`` for all inputs but the last, which is that of its result."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.run = run
        self.gradient = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.gradient(self.run)(*inputs)


class _Compiled(nn.Cell):
    """A call as a graph of its own; a cell, as MindSpore warns of each function after the first."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    @ms.jit
    def construct(self, *inputs: Tensor) -> Any:  # noqa: ANN401 (what the call returns)
        return self.call(*inputs)


def calls(check: Check) -> tuple[Callable[..., Tensor], Callable[..., Any]]:
    """The forward call of a check, and that of its gradients."""
    forward, backward = check.run, _Gradients(check.run)
    return (_Compiled(forward), _Compiled(backward)) if check.compiled else (forward, backward)


def inputs(check: Check) -> tuple[list[Tensor], Tensor]:
    """The arrays of a check as tensors of its type, and a gradient of the result."""
    tensors = [
        Tensor(array).astype(ms.float32 if i in check.wide else check.dtype)
        for i, array in enumerate(check.arrays)
    ]
    d = np.random.default_rng(1).standard_normal(check.shape, np.float32)
    return tensors, Tensor(d).astype(check.dtype)


def _results(check: Check, tensors: list[Tensor], d_out: Tensor) -> list[Array]:
    forward, backward = calls(check)
    got = [forward(*tensors)]
    if check.names:
        got += backward(*tensors, d_out)
    return [_wide(tensor) for tensor in got]


def _wide(tensor: Tensor) -> Array:
    return tensor.astype(ms.float32).asnumpy().astype(np.float64)
