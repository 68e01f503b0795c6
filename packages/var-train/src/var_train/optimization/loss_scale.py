"""Mixed precision: the type of matrix products, and the loss scale that float16 needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mindspore as ms
from var_tokenizer.common import check_choice, check_integer, check_number

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


@dataclass(frozen=True)
class PrecisionConfig:
    """Mixed precision (arXiv:1710.03740).

    Weights, their updates, norms, residuals and losses are float32 for any type of the products.
    """

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of matrix products, forward and backward, and of attention on an Ascend."""
    loss_scale: float = 2.0**11
    """The first factor of a float16 loss, so that small gradients do not vanish."""
    growth_every: int = 1000
    """Steps without overflow after which the loss scale doubles; each overflow halves it."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        check_choice("dtype", self.dtype, DTYPES)
        check_number("loss_scale", self.loss_scale, least=1, most=2**24)
        check_integer("growth_every", self.growth_every, 1)


class LossScale:
    """The dynamic loss scale of float16; 1 for other types, whose exponents have enough range."""

    def __init__(self, config: PrecisionConfig) -> None:
        self._dynamic = config.dtype == "float16"
        self._growth_every = config.growth_every
        self.value = config.loss_scale if self._dynamic else 1.0
        self._good_steps = 0

    def follow(self, finite: bool) -> None:
        """Adapts the scale to whether the gradients of a step were finite."""
        if not self._dynamic:
            return
        self._good_steps = self._good_steps + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self._good_steps == self._growth_every:
            self.value, self._good_steps = min(2.0**24, self.value * 2), 0

    def state(self) -> dict[str, float]:
        """What ``restore`` takes, in JSON's types."""
        return {"value": self.value, "good_steps": self._good_steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state`` returned."""
        self.value, self._good_steps = float(state["value"]), int(state["good_steps"])
