"""Checks of every candidate for the attention: all scales at once, and one after another."""

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import ScaleSchedule

from var_transformer.attention import BackendConfig, NextScaleAttention, build
from var_transformer.check_ascend.checks import Check
from var_transformer.check_ascend.definitions import Array, AttentionRule, attention


def attention_checks(
    schedule: ScaleSchedule,
    heads: int,
    head_width: int,
    images: int,
    candidates: dict[str, BackendConfig],
    compiled: bool = True,
) -> list[Check]:
    """Of each candidate, with queries and keys of length 1 (QK-L2)."""
    rng = np.random.default_rng(2)
    width = heads * head_width
    qkv = rng.standard_normal((images, schedule.length, 3 * width), np.float32)
    qkv[..., width : 2 * width] += 1  # keys that differ from queries and values in kind
    scale = rng.uniform(2, 8, heads).astype(np.float32)
    checks = []
    for name, backend in candidates.items():
        attend = build(schedule, heads, head_width, True, backend)
        wide = (1,)  # the scale is float32 in every model
        for way, run, mistakes in (
            ("all scales", _AllScales(attend), _all_at_once(attend, head_width)),
            ("scale by scale", _ScaleByScale(attend, compiled), _from_a_cache(attend, head_width)),
        ):
            whole = way == "all scales"
            wrong = {key: partial(_definition, rule) for key, rule in mistakes.items()}
            checks.append(
                Check(
                    *(f"attention, {name}, {way}", backend.dtype, run, (qkv, scale)),
                    *((images, schedule.length, width), ("qkv", "scale") if whole else ()),
                    *(partial(_definition, AttentionRule(schedule.visible)), wrong),
                    *(wide, compiled and whole),
                )
            )
    return checks


def _definition(rule: AttentionRule, qkv: Array, scale: Array, d: Array) -> tuple[Array, ...]:
    return attention(qkv, scale, d, rule)


class _AllScales(nn.Cell):
    def __init__(self, attend: NextScaleAttention) -> None:
        super().__init__()
        self.attend = attend

    def construct(self, qkv_bl3c: Tensor, scale_h: Tensor) -> Tensor:
        scale_1h11 = ops.reshape(scale_h, (1, -1, 1, 1))
        return self.attend.projected(qkv_bl3c, scale_1h11, None, ())[0]


class _ScaleByScale:
    """One call, and one graph, for each scale, over the keys and values of those before."""

    def __init__(self, attend: NextScaleAttention, compiled: bool) -> None:
        def extended(qkv_bl3c: Tensor, scale_1h11: Tensor, k: Any, past: Any) -> Any:  # noqa: ANN401
            return attend.projected(qkv_bl3c, scale_1h11, k, past)

        self._attend, self._call = attend, ms.jit(extended) if compiled else extended

    def __call__(self, qkv_bl3c: Tensor, scale_h: Tensor) -> Tensor:
        attend, scale_1h11, mixed = self._attend, scale_h.reshape(1, -1, 1, 1), []
        past = attend.empty_cache(qkv_bl3c.shape[0])
        for k, (begin, end) in enumerate(itertools.pairwise(attend.offsets)):
            part = qkv_bl3c[:, begin:end].copy()
            kept = past and ms.mutable(past)  # a plain tuple would be compiled in
            mixed_blc, grown = self._call(part, scale_1h11, attend.graph_input(k), kept)
            past = grown or past
            mixed.append(mixed_blc)
        return ops.concat(mixed, 1)


# ---------------------------------------------------------------- mistakes
@dataclass(frozen=True)
class _Places:
    """i: queries (L, 1). j: keys (1, L). begin, end: of each query's scale (L, 1)."""

    i: np.ndarray
    j: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def _places(attend: NextScaleAttention) -> _Places:
    offsets = np.array(attend.offsets)
    i = np.arange(offsets[-1])[:, None]
    k = np.searchsorted(offsets, i, "right")
    return _Places(i, i.T, offsets[k - 1], offsets[k])


def _all_at_once(attend: NextScaleAttention, head_width: int) -> dict[str, AttentionRule]:
    """Mistakes of the operator's arguments, of the calls' segments, and of their gradient."""
    at, (_, end, masked, reach) = _places(attend), attend.plans[-1][0]
    seen, own = at.j < at.end, (at.j < at.end) & (at.j >= at.begin)
    rule = AttentionRule(seen)
    joined = (at.i < end) & masked  # queries of the call that has a mask
    keys = at.j < end
    masks = {
        "the mask's sense is inverted": np.where(
            joined, keys & ~seen & (at.j - at.i <= reach), seen
        ),
        "the mask is left out": np.where(joined, keys, seen),
        "the mask is causal by token": np.where(joined, at.j <= at.i, seen),
        "the prefix is a key short": at.j < at.end - 1,
        "the prefix is a key long": at.j < at.end + 1,
        "the prefixes of the unmasked calls are a key short": at.j < at.end - ~joined,
        "the band is a key narrow (next_tokens)": seen & ~(joined & (at.j - at.i >= reach)),
        "a scale sees only itself": own,
    }
    return {
        **{name: replace(rule, seen_ll=mask) for name, mask in masks.items()},
        "the scale is folded in twice": replace(rule, folded=2),
        "the scale is left out": replace(rule, folded=0),
        "1 / sqrt(d) is applied, too": replace(rule, extra=head_width**-0.5),
        "heads and tokens are swapped (BNSD for BSND)": replace(rule, layout="hld"),
        "heads and channels are swapped": replace(rule, layout="ldh"),
        "the projection is split by head first": replace(rule, of_head_first=True),
        "keys and values are swapped": replace(rule, swapped=(0, 2, 1)),
        "queries and keys are swapped": replace(rule, swapped=(1, 0, 2)),
        "queries and keys do not have length 1": replace(rule, unit=False),
        "all heads together have length 1": replace(rule, by_head=False),
        "the softmax runs over the queries": replace(rule, over_queries=True),
        "the gradient of a prefix is that of its own scale alone": replace(rule, own_ll=own),
        "the length of queries and keys counts as a constant": replace(rule, projected=False),
        "the softmax's gradient is not centred": replace(rule, inner=False),
    }


def _from_a_cache(attend: NextScaleAttention, head_width: int) -> dict[str, AttentionRule]:
    """Mistakes in reading and writing the keys and values of earlier scales."""
    at = _places(attend)
    seen, own = at.j < at.end, (at.j < at.end) & (at.j >= at.begin)
    rule = AttentionRule(seen)
    return {
        "a key too few is read": replace(rule, seen_ll=at.j < at.end - 1),
        "the earlier scales are not read": replace(rule, seen_ll=own),
        "a key too many is read": replace(rule, seen_ll=at.j <= at.end, zero_ll=at.j == at.end),
        "the whole buffer is read": replace(rule, seen_ll=at.j >= 0, zero_ll=~seen),
        "the cache is read before it is written": replace(rule, zero_ll=own),
        "the cache is written a row late": replace(rule, zero_ll=at.j == at.end - 1),
        "all images have the first one's cache": replace(rule, first_image=True),
        **{
            name: mistake
            for name, mistake in _all_at_once(attend, head_width).items()
            if np.array_equal(mistake.seen_ll, seen)
        },
    }
