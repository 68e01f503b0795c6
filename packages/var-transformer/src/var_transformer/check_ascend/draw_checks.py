"""Checks of what draws token ids on an NPU, and of the operators that it is made of.

The arrays are such that no rounding can change a result: probabilities differ by more, or not at
all, and every random number lies in the middle of its token's interval.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from var_transformer.check_ascend.checks import Check
from var_transformer.check_ascend.definitions import Array, kept
from var_transformer.generation.device_draw import DeviceDraw, draw_settings
from var_transformer.generation.sampler import ScaleSettings
from var_transformer.model import operators as fast

_STRENGTH, _TEMPERATURE = 3.0, 0.5  # exact in float32, as is what they are multiplied by
_SPAN = 8  # of the logits, about


# ---------------------------------------------------------------- definitions
def ranked(x: Array, d: Array, *, descending: bool = False) -> tuple[Array]:
    """Ascending over the last axis."""
    return (-np.sort(-x, -1) if descending else np.sort(x, -1),)


def order(x: Array, d: Array, *, later_first: bool = False) -> tuple[Array]:
    """The index of each ranked value. later_first: of equal values."""
    if later_first:
        return (x.shape[-1] - 1.0 - np.argsort(x[..., ::-1], -1, kind="stable"),)
    return (np.argsort(x, -1, kind="stable").astype(float),)


def cumulative_sum(
    x: Array,
    d: Array,
    *,
    own: bool = True,
    backwards: bool = False,
    mantissa: int = 52,
    block: int | None = None,
) -> tuple[Array]:
    """own: an entry counts in its own sum. block: entries after which the sums begin anew."""
    x = kept(x, mantissa)
    if backwards:
        return (np.cumsum(x[..., ::-1], -1)[..., ::-1],)
    if block is not None:
        ends = range(block, x.shape[-1], block)
        return (np.concatenate([np.cumsum(part, -1) for part in np.split(x, ends, -1)], -1),)
    return (np.cumsum(x, -1) - (not own) * x,)


def integer_sum(x: Array, d: Array, *, less: np.ndarray, rounded: bool = False) -> tuple[Array]:
    """Cumulative sums of integers, less about as much. rounded: to float32, one by one."""
    return ((np.cumsum(x.astype(np.float32), -1) if rounded else np.cumsum(x, -1)) - less,)


def softmax(x: Array, d: Array, *, axis: int = -1, base: float = np.e) -> tuple[Array]:
    powers = base ** (x - x.max(axis, keepdims=True))
    return (powers / powers.sum(axis, keepdims=True),)


def filters(
    x: Array,
    d: Array,
    *,
    top_k: int,
    top_p: float,
    ties: bool = True,
    reaches: bool = True,
) -> tuple[Array, np.ndarray]:
    """Probabilities after both filters, ascending, and the token of each.

    ties: all values equal to the least that top-k keeps stay. reaches: so does the token by which
    top_p is reached.
    """
    tokens = np.argsort(x, -1, kind="stable")
    values = np.take_along_axis(x, tokens, -1)
    if top_k:
        rank = np.arange(x.shape[-1])
        dropped = values < values[..., -top_k, None] if ties else rank < x.shape[-1] - top_k
        values = np.where(dropped, -np.inf, values)
    if top_p:
        p = softmax(values, d)[0]
        sums = np.cumsum(p, -1) - (not reaches) * p
        least = np.count_nonzero(sums <= 1 - top_p, -1, keepdims=True)
        values = np.where(np.arange(x.shape[-1]) < least, -np.inf, values)
    return softmax(values, d)[0], tokens


def drawn(
    logits: Array,
    d: Array,
    *,
    uniform: Array,
    settings: ScaleSettings,
    swapped: bool = False,
    multiplied: bool = False,
    ranks: bool = False,
    shift: int = 0,
    first_image: bool = False,
    **changed: float,
) -> tuple[Array]:
    """Ids (B, l). swapped: conditional and unconditional logits. multiplied: by the temperature.

    ranks: ids are ranks, not tokens. shift: of the ids. first_image: its random numbers are those
    of all. changed: settings, or mistakes of the filters.
    """
    terms = vars(settings) | changed
    halves = np.split(logits, 2)
    conditional, unconditional = halves[::-1] if swapped else halves
    x = (1 + terms["strength"]) * conditional - terms["strength"] * unconditional
    x = x * terms["temperature"] if multiplied else x / terms["temperature"]
    p, tokens = filters(x, d, top_k=terms["top_k"], top_p=terms["top_p"])
    sums = np.cumsum(p if ranks else _in_order(p, tokens), -1)
    at = uniform[:1] if first_image else uniform
    ids = np.count_nonzero(sums <= at[..., None] * sums[..., -1:], -1)
    return (np.clip(ids + shift, 0, x.shape[-1] - 1).astype(float),)


def _in_order(p: Array, tokens: np.ndarray) -> Array:
    """Ranked probabilities in the order of the vocabulary."""
    result = np.empty_like(p)
    np.put_along_axis(result, tokens, p, -1)
    return result


# ---------------------------------------------------------------- operators, as checks call them
class _Result(nn.Cell):
    """One of an operator's results, as float32."""

    def __init__(self, run: nn.Cell, which: int) -> None:
        super().__init__()
        self.run, self.which = run, which

    def construct(self, x: Tensor) -> Tensor:
        return self.run(x)[self.which].astype(ms.float32)


class _IntegerSum(nn.Cell):
    """What is left is small: float32 would round the sums themselves."""

    def __init__(self, less: np.ndarray) -> None:
        super().__init__()
        self.sum, self.less = fast.CumulativeSum(), Tensor(less)

    def construct(self, x: Tensor) -> Tensor:
        return (self.sum(x.astype(ms.int32)) - self.less).astype(ms.float32)


class _Filters(nn.Cell):
    def __init__(self, settings: ScaleSettings, vocab_size: int) -> None:
        super().__init__()
        self.run, values = DeviceDraw(vocab_size), draw_settings(settings, vocab_size)
        self.dropped, self.rank = Tensor(values[3:4]), Tensor(values[4:].astype(np.int32))

    def construct(self, x: Tensor) -> Tensor:
        return self.run.filtered(x, self.dropped, self.rank)[0]


class _Draw(nn.Cell):
    def __init__(self, settings: ScaleSettings, vocab_size: int, uniform: np.ndarray) -> None:
        super().__init__()
        self.run, self.uniform = DeviceDraw(vocab_size), Tensor(uniform[..., None])
        self.settings = Tensor(draw_settings(settings, vocab_size))

    def construct(self, logits: Tensor) -> Tensor:
        return self.run(logits, self.uniform, self.settings).astype(ms.float32)


def draw_checks(images: int, tokens: int, vocab_size: int, compiled: bool = True) -> list[Check]:
    """Of a scale of so many tokens, in float32, as it always is."""
    rng, shape = np.random.default_rng(4), (images, tokens, vocab_size)
    # each value twice, so that the filters meet ties; the steps between others are powers of 2
    twice = np.arange(vocab_size) // 2
    step = 2.0 ** np.floor(np.log2(_SPAN / (twice[-1] + 1)))
    scaled = rng.permuted(np.broadcast_to(step * twice, shape), axis=-1)
    unconditional = rng.integers(-256, 256, shape) / 64
    conditional = (_TEMPERATURE * scaled + _STRENGTH * unconditional) / (1 + _STRENGTH)
    logits = np.concatenate((conditional, unconditional))
    probabilities = softmax(scaled, scaled)[0]

    # an odd top-k parts two equal values; top-p is reached in the middle of a token
    top_k = vocab_size // 2 | 1
    sums = np.cumsum(filters(scaled[0, 0], scaled, top_k=top_k, top_p=0)[0])
    at = np.searchsorted(sums, 0.1)
    kept_by = {"top_k": top_k, "top_p": 1 - (sums[at - 1] + sums[at]) / 2}
    settings = ScaleSettings(
        strength=_STRENGTH, unconditional=True, temperature=_TEMPERATURE, ratio=0.0, **kept_by
    )
    p, token = filters(scaled, scaled, **kept_by)
    rank = rng.integers(at, vocab_size, (images, tokens, 1))
    in_order = _in_order(p, token)
    middle = np.cumsum(in_order, -1) - in_order / 2
    uniform = np.take_along_axis(middle, np.take_along_axis(token, rank, -1), -1)[..., 0]

    whole = rng.integers(0, 2**31 // vocab_size, shape)
    less = (np.cumsum(whole, -1) - rng.integers(0, 100, shape)).astype(np.int32)

    def check(
        name: str,
        run: nn.Cell,
        array: np.ndarray,
        definition: Any,  # noqa: ANN401
        mistakes: dict[str, dict[str, Any]],
        out: tuple[int, ...] = shape,
    ) -> Check:
        wrong = {key: partial(definition, **terms) for key, terms in mistakes.items()}
        of_all = ((array.astype(np.float32),), out, (), definition, wrong, (), compiled)
        return Check(f"draw's {name}", ms.float32, run, *of_all)

    return [
        check(
            *("sort", _Result(fast.Ranked(), 0), scaled, ranked),
            {"the order is descending": {"descending": True}},
        ),
        check(
            *("order of equal values", _Result(fast.Ranked(), 1), scaled, order),
            {"the later of equal values comes first": {"later_first": True}},
        ),
        check(
            *("cumulative sum", fast.CumulativeSum(), probabilities, cumulative_sum),
            {
                "an entry is missing in its own sum": {"own": False},
                "the sums run backwards": {"backwards": True},
                "the sums round float32 to 10 bits (HF32, or half)": {"mantissa": 10},
                "the sums begin anew after 512 entries": {"block": 512},
            },
        ),
        check(
            *("sum of integers", _IntegerSum(less), whole, partial(integer_sum, less=less)),
            {"the sums are rounded to float32": {"rounded": True}},
        ),
        check(
            *("softmax", fast.Softmax(), scaled, softmax),
            {"it runs over the tokens": {"axis": 1}, "its base is 2": {"base": 2.0}},
        ),
        check(
            *("top-k", _Filters(replace(settings, top_p=0.0), vocab_size), scaled),
            partial(filters, top_k=top_k, top_p=0),
            {
                "top-k is left out": {"top_k": 0},
                "top-k drops values equal to the least": {"ties": False},
            },
        ),
        check(
            *("filters", _Filters(settings, vocab_size), scaled, partial(filters, **kept_by)),
            {
                "top-k is left out, or comes after top-p": {"top_k": 0},
                "top-p is left out": {"top_p": 0},
                "top-p drops the token that reaches it": {"reaches": False},
            },
        ),
        check(
            *("ids", _Draw(settings, vocab_size, uniform), logits),
            partial(drawn, uniform=uniform, settings=settings),
            {
                "guidance is left out": {"strength": 0.0},
                "guidance moves the wrong way": {"swapped": True},
                "the temperature multiplies": {"multiplied": True},
                "top-k is left out": {"top_k": 0},
                "top-p is left out": {"top_p": 0},
                "the ids are ranks": {"ranks": True},
                "the ids are one too high": {"shift": 1},
                "the ids are one too low": {"shift": -1},
                "all images have the first one's random numbers": {"first_image": True},
            },
            shape[:2],
        ),
    ]
