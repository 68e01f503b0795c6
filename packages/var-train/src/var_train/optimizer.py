"""AdamW with global-norm clipping (arXiv:1711.05101), compiled into the training step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from var_tokenizer import InputError


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW and its schedule. Raises InputError for a value out of range."""

    learning_rate: float = 3e-4
    """Rate at the peak of the schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and the second moment."""
    weight_decay: float = 0.05
    """Decay of matrices; embeddings, biases and gains are exempt."""
    clip: float = 2.0
    """Largest global norm of the gradient."""
    warmup: float = 0.05
    """Fraction of the steps that raise the rate from 0."""
    final: float = 0.01
    """Rate at the end of the cosine that follows, as a fraction of the peak."""

    def __post_init__(self) -> None:
        for field, allowed, valid in (
            ("learning_rate", "above 0", self.learning_rate > 0),
            ("betas", "two numbers in [0, 1)", all(0 <= b < 1 for b in self.betas)),
            ("weight_decay", "at least 0", self.weight_decay >= 0),
            ("clip", "above 0", self.clip > 0),
            ("warmup", "in [0, 1]", 0 <= self.warmup <= 1),
            ("final", "in [0, 1]", 0 <= self.final <= 1),
        ):
            if not valid:
                raise InputError(f"{field} is {getattr(self, field)}; expected {allowed}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (0-based) of ``steps``."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        progress = (step - warm) / max(1, steps - warm)
        cosine = 0.5 * (1 + np.cos(np.pi * progress))
        return self.learning_rate * float(self.final + (1 - self.final) * cosine)


_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")
_update = ops.MultitypeFuncGraph("update")


@_sum_of_squares.register("Tensor")
def _(gradient: Tensor) -> Tensor:
    return (gradient * gradient).sum()


@_update.register(
    "Function",
    "Number",
    "Number",
    "Tensor",
    "Tensor",
    "Bool",
    "Tensor",
    "Tensor",
    "Tensor",
    "Tensor",
)
def _(
    kernel: ops.Primitive,
    beta1: float,
    beta2: float,
    scalars_3: Tensor,
    factor: Tensor,
    decays: bool,
    parameter: Parameter,
    first: Parameter,
    second: Parameter,
    gradient: Tensor,
) -> Tensor:
    rate, epsilon, decay = scalars_3[0], scalars_3[1], scalars_3[2]
    decay = decay if decays else 0.0
    gradient = gradient * factor
    return kernel(parameter, first, second, rate, beta1, beta2, epsilon, decay, gradient)


class AdamW(nn.Cell):
    """One update of all parameters from their gradients.

    MindSpore's fused ``AdamWeightDecay`` kernel leaves out the bias correction; it is folded
    into the scalars that the kernel takes, so the result is AdamW's own.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        config: AdamWConfig,
        decays: Callable[[Parameter], bool],
    ) -> None:
        super().__init__()
        self.config = config
        self.parameters = ParameterTuple(parameters)
        self.first = self.parameters.clone("first_moment", init="zeros")
        self.second = self.parameters.clone("second_moment", init="zeros")
        self.decays = tuple(bool(decays(p)) for p in parameters)
        self.kernel = ops.AdamWeightDecay()
        self.map = ops.HyperMap()
        self.beta1, self.beta2 = config.betas

    def scalars(self, step: int, steps: int) -> Tensor:
        """What ``construct`` needs of the schedule: (rate, epsilon, decay) for the kernel."""
        beta1, beta2 = self.config.betas
        rate = self.config.rate(step, steps)
        correction1, correction2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        scaled_rate = rate * np.sqrt(correction2) / correction1
        epsilon = 1e-8 * np.sqrt(correction2)
        decay = self.config.weight_decay * rate / scaled_rate
        return Tensor(np.array([scaled_rate, epsilon, decay], np.float32))

    def construct(self, gradients: tuple[Tensor, ...], scalars_3: Tensor) -> Tensor:
        """Updates the parameters in place; returns the global norm before clipping."""
        norm = ops.sqrt(sum(self.map(_sum_of_squares, gradients)))
        factor = ops.minimum(self.config.clip / (norm + 1e-6), 1.0)
        update = ops.partial(_update, self.kernel, self.beta1, self.beta2, scalars_3, factor)
        done = self.map(update, self.decays, self.parameters, self.first, self.second, gradients)
        return ops.depend(norm, done)  # an update nobody waits for is optimized away
