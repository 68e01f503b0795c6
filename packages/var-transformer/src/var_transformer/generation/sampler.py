"""How every scale is drawn: guidance, filters and temperature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np
from var_tokenizer.common import InputError, check_choice, check_flag, check_integer, check_number

from var_transformer.generation.guidance import Guidance, guidance_strength
from var_transformer.generation.speed import SPEEDS

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class ScaleSettings:
    """The settings of one scale.

    strength: of guidance, at least 0. unconditional: whether the unconditional half must run,
    because this scale or a later one of the same model is guided and needs its cache. ratio: the
    position of the scale in [0, 1]. pruned: the share of its tokens that is left out, below 1; None
    if no scale leaves out any.
    """

    strength: float
    unconditional: bool
    top_k: int
    top_p: float
    temperature: float
    ratio: float
    pruned: float | None = None


@dataclass(frozen=True)
class Sampler:
    """How every scale is drawn."""

    cfg: float = 1.5
    """Strength of classifier-free guidance (arXiv:2207.12598) at the last scale; 0 for none."""
    guidance: Guidance = "linear"
    """Over the scales: from 0 up to cfg, as published; cfg throughout; or none."""
    guided_scales: tuple[int, ...] | None = None
    """Scales that are guided, from 0; by default all. Scales after the last of them skip the
    unconditional half of the work; scales before it must run it for its cache."""
    top_k: int | tuple[int, ...] = 0
    """Draw from the k likeliest tokens; 0 for all. One value, or one for each scale."""
    top_p: float | tuple[float, ...] = 0.0
    """Draw from the likeliest tokens that together reach this probability; 0 and 1 for all. One
    value, or one for each scale."""
    temperature: float | tuple[float, ...] = 1.0
    """Divides the guided logits, before the filters. One value, or one for each scale."""
    more_smooth: bool = False
    """Mix codes by a Gumbel softmax instead of drawing one."""
    pruned: tuple[float, ...] = ()
    """The share of tokens, below 1, that each of the last scales leaves out of the blocks: 0.5 0.75
    for half of the last but one and three quarters of the last. They are those nearest to the mean
    of their map, and are drawn from what the last whole scale gives (arXiv:2503.23367)."""
    speed: int = 0
    """A point of the curve in docs/speed.md, from 0, all the work, to 5. It sets guided_scales and
    pruned, so neither may be given beside it."""

    def __post_init__(self) -> None:
        """Raises an InputError that names the field and its value."""
        for field in ("top_k", "top_p", "temperature"):
            value = getattr(self, field)
            if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
                object.__setattr__(self, field, tuple(value))
        for field in ("guided_scales", "pruned"):
            value = getattr(self, field)
            if value is None and field == "guided_scales":
                continue
            if not isinstance(value, Sequence | np.ndarray | range) or isinstance(value, str):
                raise InputError(f"{field} is {value!r}; expected a tuple")
            object.__setattr__(self, field, tuple(value))
        for k in self.guided_scales or ():
            check_integer("a scale of guided_scales", k, 0)
        for share in self.pruned:
            check_number("a share of pruned", share, least=0, below=1)
        check_integer("speed", self.speed, 0, len(SPEEDS) - 1)
        for field, unset in (("guided_scales", None), ("pruned", ())):
            value = getattr(self, field)
            if self.speed and value != unset:
                raise InputError(
                    f"speed is {self.speed} and {field} is {value}; expected one of them, because "
                    f"speed sets {field}"
                )
        check_choice("guidance", self.guidance, get_args(Guidance))
        check_number("cfg", self.cfg, least=0)
        for value in _values(self.top_k):
            check_integer("top_k", value, 0)
        for value in _values(self.top_p):
            check_number("top_p", value, least=0, most=1)
        for value in _values(self.temperature):
            check_number("temperature", value, above=0)
        check_flag("more_smooth", self.more_smooth)

    def check(self, scales: int, vocab_size: int) -> None:
        """Raises InputError for a field that does not fit so many scales and tokens."""
        for field in ("top_k", "top_p", "temperature"):
            value = getattr(self, field)
            if isinstance(value, tuple) and len(value) != scales:
                raise InputError(
                    f"{field} has {len(value)} values; expected one, or one for each of "
                    f"{scales} scales"
                )
        for value in _values(self.top_k):
            if value > vocab_size:
                raise InputError(f"top_k is {value}; expected 0 to {vocab_size}, the vocabulary")
        for k in self.guided_scales or ():
            check_integer("a scale of guided_scales", k, 0, scales - 1)
        _, shares = self._left_out(scales)
        if len(shares) >= scales:
            source = f"speed is {self.speed}, whose pruned" if self.speed else "pruned"
            raise InputError(
                f"{source} has {len(shares)} values; expected less than {scales}, the scales: "
                "the first is whole"
            )

    def plan(self, scales: int, refined: int = 0) -> tuple[ScaleSettings, ...]:
        """The settings of each of ``scales`` scales, coarse to fine.

        refined: the number of last scales that another model draws.
        """
        drafted = scales - refined
        ratios = [k / max(scales - 1, 1) for k in range(scales)]
        guided, last_shares = self._left_out(scales)
        strengths = [
            guidance_strength(self.guidance, self.cfg, ratio) if k in guided else 0.0
            for k, ratio in enumerate(ratios)
        ]
        shares = (0.0,) * (scales - len(last_shares)) + last_shares
        return tuple(
            ScaleSettings(
                strength=strengths[k],
                unconditional=any(strengths[k:] if k >= drafted else strengths[k:drafted]),
                top_k=_of_scale(self.top_k, k),
                top_p=_of_scale(self.top_p, k),
                temperature=_of_scale(self.temperature, k),
                ratio=ratios[k],
                pruned=shares[k] if self.prunes else None,
            )
            for k in range(scales)
        )

    @property
    def prunes(self) -> bool:
        """Whether any scale leaves out tokens."""
        return any(self.pruned or SPEEDS[self.speed].pruned)

    def _left_out(self, scales: int) -> tuple[Sequence[int], tuple[float, ...]]:
        """The scales that are guided, and the shares that each of the last leaves out."""
        if self.speed:
            point = SPEEDS[self.speed]
            return range(scales - point.unguided), point.pruned
        return range(scales) if self.guided_scales is None else self.guided_scales, self.pruned


def _values(setting: Number | tuple[Number, ...]) -> tuple[Number, ...]:
    return setting if isinstance(setting, tuple) else (setting,)


def _of_scale(setting: Number | tuple[Number, ...], k: int) -> Number:
    return setting[k] if isinstance(setting, tuple) else setting
