"""How tokens are drawn: guidance, filters and temperature, each free to differ by scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
from var_tokenizer.common import (
    InputError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
)

Guidance = Literal["linear", "constant", "none"]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class ScaleSettings:
    """What one scale draws with.

    strength: of guidance, at least 0. ratio: the position of the scale in [0, 1].
    free: whether the unconditional half must run, for this scale's guidance or as the cache of
    a later one's of the same model.
    """

    strength: float
    free: bool
    top_k: int
    top_p: float
    temperature: float
    ratio: float


@dataclass(frozen=True)
class Sampler:
    """How every scale is drawn."""

    cfg: float = 1.5
    """Strength of classifier-free guidance (arXiv:2207.12598) at the last scale; 0 for none."""
    guidance: Guidance = "linear"
    """Over the scales: from 0 up to cfg, as published; cfg throughout; or none."""
    guided_scales: tuple[int, ...] | None = None
    """Scales that are guided, counted from 0; by default all. Those after the last guided one
    skip the unconditional half of the work; those before it must run it for its cache."""
    top_k: int | tuple[int, ...] = 0
    """Draw from the k likeliest tokens; 0 for all. One value, or one for each scale."""
    top_p: float | tuple[float, ...] = 0.0
    """Draw from the likeliest tokens that together reach this probability; 0 and 1 for all. One
    value, or one for each scale."""
    temperature: float | tuple[float, ...] = 1.0
    """Divides the guided logits, before the filters. One value, or one for each scale."""
    more_smooth: bool = False
    """Mix codes by a Gumbel softmax in place of drawing one."""

    def __post_init__(self) -> None:
        """Raises InputError that names the field and its value."""
        for field in ("top_k", "top_p", "temperature"):
            value = getattr(self, field)
            if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
                object.__setattr__(self, field, tuple(value))
        if self.guided_scales is not None:
            if not isinstance(self.guided_scales, Sequence | np.ndarray | range):
                raise InputError(f"guided_scales is {self.guided_scales!r}; expected a tuple")
            object.__setattr__(self, "guided_scales", tuple(self.guided_scales))
            for scale in self.guided_scales:
                check_integer("a scale of guided_scales", scale, 0)
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
        """Raises InputError where a field does not suit a model of so many scales and tokens."""
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
        for scale in self.guided_scales or ():
            check_integer("a scale of guided_scales", scale, 0, scales - 1)

    def plan(self, scales: int, refined: int = 0) -> tuple[ScaleSettings, ...]:
        """The settings of each of ``scales`` scales, coarse to fine.

        refined: the number of last scales that another model draws.
        """
        drafted = scales - refined
        ratios = [k / max(scales - 1, 1) for k in range(scales)]
        guided = range(scales) if self.guided_scales is None else self.guided_scales
        strengths = [self._strength(ratios[k]) if k in guided else 0.0 for k in range(scales)]
        return tuple(
            ScaleSettings(
                strength=strengths[k],
                free=any(strengths[k:] if k >= drafted else strengths[k:drafted]),
                top_k=_of_scale(self.top_k, k),
                top_p=_of_scale(self.top_p, k),
                temperature=_of_scale(self.temperature, k),
                ratio=ratios[k],
            )
            for k in range(scales)
        )

    def _strength(self, ratio: float) -> float:
        if self.guidance == "none":
            return 0.0
        return self.cfg * ratio if self.guidance == "linear" else self.cfg


def check_sampler(cfg: float, top_k: int, top_p: float, vocab_size: int | None = None) -> None:
    """Raises InputError for a sampler setting out of range."""
    sampler = Sampler(cfg=cfg, top_k=top_k, top_p=top_p)
    if vocab_size is not None:
        sampler.check(scales=1, vocab_size=vocab_size)


def _values(setting: Number | tuple[Number, ...]) -> tuple[Number, ...]:
    return setting if isinstance(setting, tuple) else (setting,)


def _of_scale(setting: Number | tuple[Number, ...], scale: int) -> Number:
    return setting[scale] if isinstance(setting, tuple) else setting
