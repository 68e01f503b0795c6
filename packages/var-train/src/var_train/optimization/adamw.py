"""AdamW (arXiv:1711.05101) with clipping by the global norm, and a weight decay that may change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from var_tokenizer.common import InputError, KernelLibrary, check_number, free_memory

from var_train.operators import sum_of_scalars, three_parts, total
from var_train.optimization.learning_rate import RATE_SCHEDULES, is_rate_schedule, learning_rate
from var_train.parallel.sharding import Sharding
from var_train.training.checkpoints import ArraysOnDemand, parameter_arrays, restore_parameters

_kernels = KernelLibrary("var_train._kernels")


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW and its learning-rate schedule."""

    learning_rate: float = 3e-4
    """Peak of the learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and the second moment."""
    weight_decay: float = 0.05
    """Decay of matrices; positions, biases and gains are exempt."""
    weight_decay_end: float | None = None
    """Decay at the last step, reached along half a cosine; None for a constant decay."""
    clip: float = 2.0
    """Largest global norm of the gradient."""
    rate_schedule: str = "cos"
    """How the rate falls: cos (half a cosine), lin, lin0 and lin00 (straight, after 15, 5 and 0 %
    of the steps at the peak), linX with X in (0, 1) (straight in two parts that meet after that
    fraction, the first half as steep), exp (exponentially, after 15 %)."""
    warmup: float = 0.05
    """Fraction of the steps that raise the rate to its peak."""
    warmup_start: float = 0.005
    """Rate of the first step, if there is a warmup, as a fraction of the peak."""
    final: float = 0.01
    """Rate at the end, as a fraction of the peak."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        check_number("learning_rate", self.learning_rate, above=0)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise InputError(f"betas is {self.betas!r}; expected two numbers")
        for beta in self.betas:
            check_number("a number of betas", beta, least=0, below=1)
        check_number("weight_decay", self.weight_decay, least=0)
        if self.weight_decay_end is not None:
            check_number("weight_decay_end", self.weight_decay_end, least=0)
        check_number("clip", self.clip, above=0, finite=False)
        check_number("warmup", self.warmup, least=0, most=1)
        check_number("warmup_start", self.warmup_start, least=0, most=1)
        check_number("final", self.final, least=0, most=1)
        if not is_rate_schedule(self.rate_schedule):
            raise InputError(f"rate_schedule is {self.rate_schedule}; expected {RATE_SCHEDULES}")
        if self.rate_schedule == "exp" and self.final == 0:
            raise InputError("final is 0; expected above 0 for the rate_schedule exp")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (0-based) of ``steps``."""
        return learning_rate(
            step,
            steps,
            peak=self.learning_rate,
            rate_schedule=self.rate_schedule,
            warmup=self.warmup,
            warmup_start=self.warmup_start,
            final=self.final,
        )

    def decay(self, step: int, steps: int) -> float:
        """The weight decay of ``step`` (0-based) of ``steps``."""
        if self.weight_decay_end is None:
            return self.weight_decay
        cosine = 0.5 * (1 + np.cos(np.pi * step / max(1, steps - 1)))
        return float(self.weight_decay_end + (self.weight_decay - self.weight_decay_end) * cosine)


_MOST_SKIPPED = 100  # steps in a row; a loss scale falls from its largest value to 1 in 24

# Use HyperMap: `ms.jit` unrolls a Python loop into nested calls and stops at 1,000, which the
# parameters of a transformer of depth 36 exceed.
_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")
_update = ops.MultitypeFuncGraph("update")


@_sum_of_squares.register("Function", "Tensor")
def _sum_of_squares_of(sum_of_squares: Callable[[Tensor], Tensor], gradient: Tensor) -> Tensor:
    return sum_of_squares(gradient)


@_update.register(
    *("Function", "Tensor", "Tensor", "Tensor", "Tensor"),
    *("Tensor", "Tensor", "Tensor", "Tensor", "Bool"),
)
def _update_parameter(
    update: nn.Cell,
    factor: Tensor,
    finite: Tensor,
    scalars_3: Tensor,
    undecayed_3: Tensor,
    parameter: Parameter,
    first: Parameter,
    second: Parameter,
    gradient: Tensor,
    decays: bool,
) -> Tensor:
    scalars = scalars_3 if decays else undecayed_3
    return update(parameter, first, second, gradient, factor, finite, scalars)


class _Update(nn.Cell):
    """Updates one parameter and its moments in place with MindSpore's fused kernel.

    The kernel has no bias correction; ``AdamW.scalars`` folds it into the kernel's arguments.
    """

    def __init__(self, betas: tuple[float, float]) -> None:
        super().__init__()
        self.kernel = ops.AdamWeightDecay()
        self.beta1, self.beta2 = betas

    def sum_of_squares(self, gradient: Tensor) -> Tensor:
        return total(gradient * gradient)

    def construct(
        self,
        parameter: Parameter,
        first: Parameter,
        second: Parameter,
        gradient: Tensor,
        factor: Tensor,
        finite: Tensor,
        scalars_3: Tensor,
    ) -> Tensor:
        """Multiplies the gradient by ``factor`` first; changes nothing if it is not ``finite``."""
        gradient = ops.select(finite, gradient * factor, ops.zeros_like(gradient))
        one = ops.ones_like(factor)
        rate, epsilon, decay = three_parts(scalars_3)
        # a skipped step keeps its epsilon: with moments of 0 the update is 0 / (0 + epsilon)
        rate = ops.select(finite, rate, 0 * one)
        beta1 = ops.select(finite, self.beta1 * one, one)
        beta2 = ops.select(finite, self.beta2 * one, one)
        return self.kernel(parameter, first, second, rate, beta1, beta2, epsilon, decay, gradient)


class _KernelUpdate(nn.Cell):
    """The same in one pass, in C++, for float32, without scaled copies of the gradients."""

    def __init__(self, library: KernelLibrary, betas: tuple[float, float]) -> None:
        super().__init__()
        self.kernel = library.operator("adamw", lambda *_: (1,))
        self.kernel.add_prim_attr("side_effect_mem", True)  # or the graph might reorder it
        self.squares = library.operator("sum_of_squares", lambda _: (1,))
        self.betas_2 = Tensor(np.array(betas, np.float32))

    def sum_of_squares(self, gradient: Tensor) -> Tensor:
        return self.squares(gradient).reshape(())

    def construct(
        self,
        parameter: Parameter,
        first: Parameter,
        second: Parameter,
        gradient: Tensor,
        factor: Tensor,
        finite: Tensor,
        scalars_3: Tensor,
    ) -> Tensor:
        return self.kernel(
            parameter, first, second, gradient, factor, finite, scalars_3, self.betas_2
        )


def is_decayed(parameter: Parameter) -> bool:
    """Whether weight decay applies: as published, to matrices and to the embeddings of classes.

    Not to biases, to embeddings of positions and scales, and to gains of any shape.
    """
    exempt = ("lvl_embed", "pos_start", "pos_1LC", "scale_mul", "ada_gss")
    return parameter.ndim > 1 and not any(name in parameter.name for name in exempt)


class AdamW(nn.Cell):
    """Updates all parameters from their gradients.

    A gradient that is not finite changes nothing. ``skipped`` counts such steps, which the bias
    correction leaves out; the caller passes the norm of every step to ``count``.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        config: AdamWConfig,
        decays: Callable[[Parameter], bool],
        sharding: Sharding | None = None,
    ) -> None:
        """decays: whether weight decay applies to a parameter. sharding: of these parameters, if
        this worker is to update only its own.
        """
        super().__init__(auto_prefix=False)  # or the sharding would rename the model's weights
        self.config = config
        self._last = {"learning_rate": 0.0, "weight_decay": 0.0}
        self.sharding = sharding
        if sharding is not None:
            parameters = list(sharding.own)
        self.parameters = ParameterTuple(parameters)
        self.first = self.parameters.clone("first_moment", init="zeros")
        self.second = self.parameters.clone("second_moment", init="zeros")
        self.decays = tuple(bool(decays(p)) for p in parameters)
        float32 = all(p.dtype == ms.float32 for p in parameters)
        library = _kernels.if_usable() if float32 else None
        self.update = (
            _Update(config.betas) if library is None else _KernelUpdate(library, config.betas)
        )
        self.map = ops.HyperMap()
        self.no_decay_3 = Tensor(np.array([1, 1, 0], np.float32))
        self.skipped = self.skipped_in_a_row = 0

    def scalars(self, step: int, steps: int) -> Tensor:
        """(3,): rate, epsilon and decay of a step (0-based) of ``steps``, as ``construct`` needs.

        Their values make an AdamW without bias correction equal to one with it.
        """
        beta1, beta2 = self.config.betas
        rate, updates = self.config.rate(step, steps), step - self.skipped + 1
        correction1, correction2 = 1 - beta1**updates, 1 - beta2**updates
        scaled_rate = rate * np.sqrt(correction2) / correction1
        epsilon = 1e-8 * np.sqrt(correction2)
        self._last = {"learning_rate": rate, "weight_decay": self.config.decay(step, steps)}
        decay = self._last["weight_decay"] * rate / scaled_rate
        return Tensor(np.array([scaled_rate, epsilon, decay], np.float32))

    def construct(
        self,
        gradients: tuple[Tensor, ...],
        scalars_3: Tensor,
        divisor: Tensor | float = 1.0,
        joined: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Updates the parameters in place; returns the global norm before clipping.

        divisor: what to divide the gradients by first (loss scale, accumulated parts). joined: the
        same gradients in fewer arrays, if there are such, so that the norm takes fewer kernels.
        """
        measured = gradients if joined is None else joined
        squares = self.map(ops.partial(_sum_of_squares, self.update.sum_of_squares), measured)
        norm = ops.sqrt(sum_of_scalars(squares)) / divisor
        finite = ops.isfinite(norm)
        factor = ops.minimum(self.config.clip / (norm + 1e-6), 1.0) / divisor
        undecayed_3 = scalars_3 * self.no_decay_3
        if self.sharding is not None:
            gradients = gradients[self.sharding.begin : self.sharding.end]
        update = ops.partial(_update, self.update, factor, finite, scalars_3, undecayed_3)
        states = self.parameters, self.first, self.second
        done = self.map(update, *states, gradients, self.decays)
        norm = ops.depend(norm, done)  # or the update would be optimized away
        return norm if self.sharding is None else self.sharding(norm)

    def count(self, norm: float) -> bool:
        """Whether the step that returned ``norm`` changed the weights; counts it if it did not.

        Raises InputError after a hundred such steps in a row: the training no longer progresses.
        """
        finite = bool(np.isfinite(norm))
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == _MOST_SKIPPED:
            raise InputError(
                f"the gradient's norm is {norm} for {_MOST_SKIPPED} steps in a row; expected "
                "finite numbers (a lower learning_rate or clip may help)"
            )
        return finite

    def snapshot(self, prefix: str) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
        """Arrays, under ``prefix``, and JSON state of a ``Snapshot``.

        All moments, sharded or not: sharded ones are on demand.
        """
        state = {
            "skipped": self.skipped,
            # what another framework has to know to go on
            "betas": list(self.config.betas),
            **self._last,
        }
        if self.sharding is None:
            return parameter_arrays(prefix, (*self.first, *self.second)), state
        makers = {}
        for kind, moments in (("first_moment", self.first), ("second_moment", self.second)):
            for i, parameter in enumerate(self.sharding.parameters):
                name = f"{prefix}/{kind}.{parameter.name}"
                makers[name] = partial(self.sharding.array, i, moments)
        return ArraysOnDemand(makers), state

    def restore(
        self, prefix: str, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> None:
        """Restores what ``snapshot`` returned on worker 0."""
        moments = (*self.first, *self.second)
        if self.sharding is not None:
            own = {f"{prefix}/{p.name}" for p in moments}
            arrays = {name: array for name, array in arrays.items() if name in own}
        restore_parameters(prefix, moments, arrays)
        self.skipped = int(state["skipped"])
        self._last = {key: float(state.get(key, old)) for key, old in self._last.items()}


def release_gradients(gradients: Sequence[Tensor]) -> None:
    """Frees the memory of gradients after the update.

    A compiled function keeps its last arguments, so they would coexist with the next gradients.
    """
    for gradient in gradients:
        free_memory(gradient)
