"""Next-scale attention: every token of scale k sees all tokens of scales 0 to k.

One interface for training (all scales at once, arXiv:2404.02905, figure 4) and generation (one
scale after another, with a cache); the model never asks which backend computes.

    attend = build(schedule, heads, head_width, unit_length, backend)
    y_blc, _ = attend(q_blc, k_blc, v_blc, score_scale, None, ())       # all scales at once
    y_blc, grown = attend(q_blc, k_blc, v_blc, score_scale, k, past)    # scale k alone
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import mindspore as ms
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import InputError, check_choice, on_cpu

from var_transformer.attention.ascend import AscendAttention
from var_transformer.attention.base import NextScaleAttention, Place
from var_transformer.attention.cache import Cache, KeysValues
from var_transformer.attention.cpu import CpuAttention
from var_transformer.attention.portable import PortableAttention
from var_transformer.model.operators import kernels

__all__ = [
    "AttentionCalls",
    "BackendConfig",
    "Cache",
    "KeysValues",
    "NextScaleAttention",
    "Place",
    "build",
]

ProductType: TypeAlias = Literal["float32", "float16", "bfloat16"]
"""The types that a model's matrix products may have."""

AttentionCalls: TypeAlias = Literal["cheapest", "auto", "segments", "banded", "masked"]
"""See ``BackendConfig.calls``."""


@dataclass(frozen=True)
class BackendConfig:
    """Which attention to use, and in which type.

    name: "ascend" (fused operators, float16 or bfloat16), "portable" (any device and type), or
    "auto": ascend on an Ascend in one of its types, C++ kernels on a CPU that has them, portable
    elsewhere.
    calls: how all scales at once, as in training, are attended: in "segments", cut for few scores
    and launches, one "banded" call, which ascend attention alone has, or one "masked" call. By
    default in what costs least by a model of launches, products and memory
    (``segments.training_seconds``; see README); with "auto" until a training has timed all. The C++
    kernels are one call that skips what is hidden: there is nothing to choose.
    dtype: of the model's matrix products, and of queries, keys and values in ascend attention and
    its cache; every other attention computes in float32.

    Raises InputError for an unknown name, of a backend or of calls.
    """

    name: str = "auto"
    dtype: ms.Type = ms.float32
    calls: AttentionCalls = "cheapest"

    def __post_init__(self) -> None:
        check_choice("attention backend", self.name, ("auto", "ascend", "portable"))
        check_choice("attention", self.calls, get_args(AttentionCalls))

    @classmethod
    def for_drawing(cls, dtype: str | None = None) -> "BackendConfig":
        """What images are drawn with here, in products of "float32", "float16" or "bfloat16".

        By default in float16 on an Ascend, which has its fused attention for that, and in float32
        elsewhere. Raises InputError for another type, and for bfloat16 on a CPU.
        """
        if dtype is None:
            dtype = "float16" if ms.get_context("device_target") == "Ascend" else "float32"
        check_choice("dtype", dtype, get_args(ProductType))
        if dtype == "bfloat16" and on_cpu():
            raise InputError(
                "dtype is bfloat16; expected float32 or float16 on a CPU, where MindSpore has no "
                "product of bfloat16 matrices"
            )
        return cls(dtype=getattr(ms, dtype))

    @property
    def fused(self) -> bool:
        """Whether Ascend's fused operators are used on the current device."""
        if self.name != "auto":
            return self.name == "ascend"
        return ms.get_context("device_target") == "Ascend" and self.dtype != ms.float32


def build(
    schedule: ScaleSchedule,
    heads: int,
    head_width: int,
    unit_length: bool,
    backend: BackendConfig = BackendConfig(),
) -> NextScaleAttention:
    """The attention of one block.

    unit_length: scales queries and keys to length 1 first (QK-L2).
    Raises InputError for a head width or dtype that the fused operators do not take, and for calls
    that the attention of this device does not have.
    """
    library = kernels()
    attend: NextScaleAttention
    if backend.fused:
        attend = AscendAttention(schedule, heads, head_width, unit_length, backend.dtype)
    elif backend.name == "auto" and library is not None and head_width % 16 == 0:
        attend = CpuAttention(schedule, heads, head_width, unit_length, library)
    else:
        attend = PortableAttention(schedule, heads, unit_length)
    if backend.calls != "auto":
        attend.use(backend.calls)
    return attend
