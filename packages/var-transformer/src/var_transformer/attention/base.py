"""The interface of every backend of next-scale attention, what backends share, and the mask."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr
from var_tokenizer import ScaleSchedule, layout
from var_tokenizer.common import InputError, check_choice

from var_transformer.attention.cache import KeysValues
from var_transformer.attention.segments import Plan
from var_transformer.model.operators import UnitLength

PlainSegment: TypeAlias = tuple[int, int, bool, int]  # a Segment as graphs read it
Place: TypeAlias = int | tuple[int, int] | Tensor
"""Where tokens lie in the cache, as ``graph_input`` gives it."""


class NextScaleAttention(nn.Cell):
    """softmax(score_scale q k^T) v, where a query sees what ``ScaleSchedule.visible`` says.

    All scales at once are attended in segments (see ``segments``): some coarse scales together
    under a mask, every finer one alone over its prefix of the keys. ``use`` chooses among the
    backend's cuts into such calls, whose results agree to rounding. A backend defines its layout
    of the heads (``heads_of``, ``merged``), its call (``attend``) and its cache (``empty_cache``,
    ``extend``).
    """

    axis: int  # of the tokens, in the backend's layout
    scale_dtype = ms.float32  # of a learned scale of scores, so that no scale casts it again
    # a whole block over its cache, if there is a kernel for it
    cached_block: Callable[..., Tensor] | None = None

    def __init__(
        self,
        schedule: ScaleSchedule,
        heads: int,
        unit_length: bool,
        cuts: Mapping[str, Callable[[ScaleSchedule], Plan]],
    ) -> None:
        """cuts: by name; "cheapest" is what costs least by a model, and used at first."""
        super().__init__()
        self.heads = heads
        self.scales = schedule.scales
        self.offsets = schedule.offsets
        prefixes = [ScaleSchedule(schedule.scales[: k + 1]) for k in range(len(schedule))]
        # progressive training may stop at any scale: a plan for each; graphs read plain tuples
        self._cuts = {
            n: tuple(_plain(cut(prefix)) for prefix in prefixes) for n, cut in cuts.items()
        }
        self.use("cheapest")
        self.unit_length, self.parts = UnitLength() if unit_length else None, layout.parts()

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the cuts that differ, for all scales."""
        names = {plans[-1]: name for name, plans in self._cuts.items() if name != "cheapest"}
        return tuple(names.values())

    def use(self, name: str) -> None:
        """Takes another cut, in graphs that are compiled from now on.

        Raises InputError if this backend has none of that name.
        """
        check_choice("attention", name, self._cuts)
        self.plans = self._cuts[name]

    def construct(
        self,
        q_blc: Tensor,
        k_blc: Tensor,
        v_blc: Tensor,
        score_scale: Tensor | float,
        k: Place | None,
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        """Mixed values (B, L, C), and the cache of this block, () if it is written in place.

        score_scale: one number or (1, H, 1, 1). k: the scale of the tokens, as
        ``graph_input`` gives it; None for all scales at once, or for the first few. past: the
        cache of this block; () if k is None.
        Raises InputError for a number of tokens that the schedule does not have.
        """
        heads = self.heads_of(q_blc, k_blc, v_blc, score_scale)
        mixed_blc, grown = self.of_heads(*heads, q_blc.shape[1], k, past)
        return mixed_blc.astype(q_blc.dtype), grown

    def of_heads(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        length: int,
        k: Place | None,
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        """As ``construct``, for ``length`` tokens in the backend's layout, queries scaled."""
        if k is None:
            last = last_scale(length, self.offsets)
            mixed, grown = self._all_scales(queries, keys, values, self.plans[last]), ()
        else:
            check_tokens(length, k, self.offsets)
            mixed, grown = self.extend(queries, keys, values, k, past)
        return self.merged(mixed), grown

    def projected(
        self,
        qkv_bl3c: Tensor,
        score_scale: Tensor | float,
        k: Place | None,
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        """As ``construct``, for queries, keys and values side by side, (B, L, 3 * C)."""
        q_blc, k_blc, v_blc = self.parts(qkv_bl3c, qkv_bl3c.shape[-1] // 3, 2)
        return self.construct(q_blc, k_blc, v_blc, score_scale, k, past)

    def _all_scales(
        self, queries: Tensor, keys: Tensor, values: Tensor, plan: tuple[PlainSegment, ...]
    ) -> Tensor:
        if len(plan) == 1:
            return self.attend(queries, keys, values, plan[0])
        sizes = tuple(end - begin for begin, end, _, _ in plan)
        qs, ks = self.parts(queries, sizes, self.axis), self.parts(keys, sizes, self.axis)
        vs = self.parts(values, sizes, self.axis)
        mixed = (self.attend(qs[0], ks[0], vs[0], plan[0]),)
        for i in range(1, len(plan) - 1):
            # concatenated: the gradient of a slice would be padded to the whole length
            prefix_keys = ops.concat(ks[: i + 1], self.axis)
            prefix_values = ops.concat(vs[: i + 1], self.axis)
            one = self.attend(qs[i], prefix_keys, prefix_values, plan[i])
            mixed = (*mixed, one)  # type: ignore[assignment]  # graphs take no annotation
        return ops.concat((*mixed, self.attend(qs[-1], keys, values, plan[-1])), self.axis)

    def graph_input(self, k: int, span: tuple[int, int] | None = None) -> Place:
        """Scale k as an input of a compiled graph.

        span: the first position of its tokens in the cache, and the one after the last, where
        tokens are left out, of this scale or of those before. A backend that gives a tensor has one
        graph for all scales, others have one for each.
        """
        return k if span is None else span

    def empty_cache(self, batch: int) -> KeysValues:
        """The cache of one block before the first scale."""
        raise NotImplementedError

    def heads_of(
        self, q_blc: Tensor, k_blc: Tensor, v_blc: Tensor, score_scale: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values in the backend's layout; queries scaled."""
        raise NotImplementedError

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, segment: PlainSegment
    ) -> Tensor:
        """One segment's queries over its keys; ``segment`` is (begin, end, masked, reach)."""
        raise NotImplementedError

    def extend(
        self, queries: Tensor, keys: Tensor, values: Tensor, k: Place, past: KeysValues
    ) -> tuple[Tensor, KeysValues]:
        """Scale k over its own keys and those of ``past``, and the cache with its own."""
        raise NotImplementedError

    def merged(self, mixed: Tensor) -> Tensor:
        """From the backend's layout to (B, L, C)."""
        raise NotImplementedError


def _plain(plan: Plan) -> tuple[PlainSegment, ...]:
    return tuple((s.begin, s.end, s.masked, s.reach) for s in plan)


# These are evaluated while a graph is compiled.
@constexpr
def last_scale(count: int, offsets: tuple[int, ...]) -> int:
    """The index of the last scale in a sequence of ``count`` tokens."""
    if count not in offsets[1:]:
        raise InputError(
            f"sequence has {count} tokens; expected {offsets[-1]}, those of the schedule "
            f"(or of its first scales: one of {offsets[1:]})"
        )
    return offsets.index(count) - 1


@constexpr
def check_tokens(count: int, k: int | tuple[int, int], offsets: tuple[int, ...]) -> None:
    """Raises InputError unless scale k, or a span, has ``count`` tokens."""
    begin, end = span_of(k, offsets)
    if count != end - begin:
        raise InputError(f"sequence has {count} tokens; expected {end - begin}, those of scale {k}")


def span_of(k: int | tuple[int, int], offsets: tuple[int, ...]) -> tuple[int, int]:
    """The first position of scale k in the cache, and the one after the last."""
    return k if isinstance(k, tuple) else (offsets[k], offsets[k + 1])
