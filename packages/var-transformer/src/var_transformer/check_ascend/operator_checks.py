"""Checks of the operators that the transformer is made of, in every form that the device has."""

from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from var_tokenizer.common import on_cpu

from var_transformer import ascend_c
from var_transformer.check_ascend import definitions as of
from var_transformer.check_ascend.checks import Check
from var_transformer.model import operators as fast

_NORM: dict[str, dict[str, Any]] = {
    "epsilon is 1e-5, not 1e-6": {"epsilon": 1e-5},
    "the variance is divided by n - 1": {"unbiased": True},
    "mean and variance count as constants": {"constant_statistics": True},
}
_MODULATION: dict[str, dict[str, Any]] = {
    "the 1 of 1 + scale is missing": {"one": 0.0},
    "scale and shift are swapped": {"swapped": True},
    "all images have the first one's modulation": {"first_image": True},
}
_LINEAR: dict[str, dict[str, Any]] = {
    "the weight is transposed": {"transposed": True},
    "the bias is missing": {"has_bias": False},
    "the products round float32 to 10 bits (HF32, or half)": {"mantissa": 10},
    "the products round to 7 bits (bfloat16)": {"mantissa": 7},
}


class _OfType(nn.Cell):
    """The result of a cell in one type: some operators choose another by device."""

    def __init__(self, run: nn.Cell, dtype: ms.Type) -> None:
        super().__init__()
        self.run, self.dtype = run, dtype

    def construct(self, *arrays: Tensor) -> Tensor:
        return self.run(*arrays).astype(self.dtype)


def operator_checks(
    dtype: ms.Type, images: int, length: int, width: int, heads: int, compiled: bool = True
) -> list[Check]:
    """Of each operator at the shapes of a model, in one type."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def check(
        name: str,
        run: Any,  # noqa: ANN401 (a cell)
        names: str,
        arrays: tuple[np.ndarray, ...],
        definition: Any,  # noqa: ANN401
        mistakes: dict[str, dict[str, Any]],
        wide: tuple[int, ...] = (),
    ) -> Check:
        wrong = {key: partial(definition, **terms) for key, terms in mistakes.items()}
        terms = (arrays, arrays[0].shape, tuple(names.split()), definition, wrong)
        if not on_cpu() and hasattr(run, "dtype"):
            run.dtype = dtype  # of the products that follow, as a model of this type has it
        return Check(name, dtype, _OfType(run, dtype), *terms, wide, compiled)

    x, modulation = normal(images, length, width), normal(images, 1, width)
    other = normal(images, 1, width)
    flat = x.copy()
    flat[:, ::2] *= 3e-3  # rows whose variance is not far above epsilon
    norm = (flat, modulation, other)
    weight, bias = normal(width, width) / np.float32(np.sqrt(width)), normal(width)
    apart = normal(images, length, heads, width // heads)
    composed = fast.ModulatedNorm()
    composed.fused = None  # that has a check of its own
    checks = [
        check("GELU", fast.Gelu(), "x", (2 * x,), of.gelu, {"the exact form (erf)": {"erf": True}}),
        check("layer norm", fast.LayerNorm(), "x", (flat,), of.layer_norm, _NORM),
        check(
            *("modulated norm", composed, "x scale shift", norm),
            *(of.modulated_norm, _MODULATION | _NORM),
        ),
        check(
            *("gated sum", fast.GatedSum(), "x branch gate", (x, normal(*x.shape), other)),
            *(of.gated_sum, {"the gate is applied to x": {"swapped": True}}),
        ),
        check("linear map", fast.Linear(), "x weight bias", (x, weight, bias), of.linear, _LINEAR),
        check(
            *("unit length", fast.UnitLength(), "x", (apart,), of.unit_length),
            {"the length counts as a constant": {"projected": False}},
        ),
    ]
    fused = ascend_c.operators()
    if fused is not None and ascend_c.takes_width(width):
        fused_norm = ascend_c.ModulatedNorm(fused, composed.composed)
        terms = (fused_norm, "x scale shift", norm, of.modulated_norm, _MODULATION | _NORM)
        checks.append(check("modulated norm in Ascend C", *terms))
        if dtype != ms.float32:
            checks.append(check("modulated norm in Ascend C, of float32", *terms, wide=(0,)))
    return checks
