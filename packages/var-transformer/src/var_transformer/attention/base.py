"""What every backend of next-scale attention shares: its interface and the cut into segments."""

from collections.abc import Callable

from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import InputError

from var_transformer.attention.segments import Plan, cut
from var_transformer.model.operators import UnitLength

Kept = tuple[Tensor, ...]  # the cache of one block


class NextScaleAttention(nn.Cell):
    """softmax(scale q k^T) v, where a query sees the keys of its own and all coarser scales.

    All scales at once are attended in segments (see ``segments``): some coarse scales together
    under a mask, every finer one alone over its prefix of the keys. A backend says how its
    heads lie (``heads_of``), how it attends (``attend``) and how its cache grows (``extend``).
    """

    axis: int  # of the tokens, in the backend's layout

    def __init__(
        self,
        schedule: ScaleSchedule,
        heads: int,
        unit_length: bool,
        cost: Callable[[Plan], float],
        banded: bool = False,
    ) -> None:
        """cost: of segments, which are cut where it is least. banded: masked calls take a band."""
        super().__init__()
        self.heads = heads
        self.offsets = schedule.offsets
        self.tokens = schedule.tokens
        prefixes = (ScaleSchedule(schedule.scales[: k + 1]) for k in range(len(schedule)))
        # for training on the coarse scales alone, too; as plain tuples, which graphs can read
        self.plans = tuple(_plain(cut(prefix, cost, banded)) for prefix in prefixes)
        self.unit_length = UnitLength() if unit_length else None

    def construct(
        self,
        q_blc: Tensor,
        k_blc: Tensor,
        v_blc: Tensor,
        scale: Tensor | float,
        index: int | Tensor | None,
        past: Kept,
    ) -> tuple[Tensor, Kept]:
        """Mixed values (B, L, C), and the cache of this block, () where it is written in place.

        scale: of the scores, one number or (1, H, 1, 1). index: the scale that the tokens are, or
        its ``place``; None for all at once, or for the first few scales. past: cache of this
        block, with index.
        Raises InputError for a number of tokens that the schedule does not have.
        """
        q, k, v = self.heads_of(q_blc, k_blc, v_blc, scale)
        if index is None:
            last = last_scale(q_blc.shape[1], self.offsets)
            mixed, kept = self._all_scales(q, k, v, self.plans[last]), ()
        else:
            check_tokens(q_blc.shape[1], index, self.tokens)
            mixed, kept = self.extend(q, k, v, index, past)
        return self.merged(mixed).astype(q_blc.dtype), kept

    def projected(
        self, qkv_bl3c: Tensor, scale: Tensor | float, index: int | Tensor | None, past: Kept
    ) -> tuple[Tensor, Kept]:
        """As ``construct``, for queries, keys and values side by side, (B, L, 3 * C)."""
        q_blc, k_blc, v_blc = ops.split(qkv_bl3c, qkv_bl3c.shape[-1] // 3, 2)
        return self.construct(q_blc, k_blc, v_blc, scale, index, past)

    def _all_scales(self, q: Tensor, k: Tensor, v: Tensor, plan: tuple) -> Tensor:
        if len(plan) == 1:
            return self.attend(q, k, v, plan[0])
        sizes = tuple(end - begin for begin, end, _, _ in plan)
        qs, ks = ops.split(q, sizes, self.axis), ops.split(k, sizes, self.axis)
        vs = ops.split(v, sizes, self.axis)
        mixed = (self.attend(qs[0], ks[0], vs[0], plan[0]),)
        for i in range(1, len(plan) - 1):
            # by concatenation: the gradient of a slice would be padded to the whole length
            keys = ops.concat(ks[: i + 1], self.axis)
            values = ops.concat(vs[: i + 1], self.axis)
            mixed = (*mixed, self.attend(qs[i], keys, values, plan[i]))
        return ops.concat((*mixed, self.attend(qs[-1], k, v, plan[-1])), self.axis)

    def place(self, index: int) -> int | Tensor:
        """Scale ``index`` as an input of a compiled graph.

        A number is compiled in. A backend that gives a tensor takes all scales in one graph.
        """
        return index

    def empty_cache(self, batch: int) -> Kept:
        """The cache of one block before the first scale."""
        raise NotImplementedError

    def heads_of(
        self, q_blc: Tensor, k_blc: Tensor, v_blc: Tensor, scale: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values in the backend's layout; queries scaled."""
        raise NotImplementedError

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, segment: tuple[int, int, bool, int]
    ) -> Tensor:
        """One segment's queries over its keys; ``segment`` is (begin, end, masked, reach)."""
        raise NotImplementedError

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, index: int, past: Kept
    ) -> tuple[Tensor, Kept]:
        """One scale over all keys so far, and the cache with it."""
        raise NotImplementedError

    def merged(self, mixed: Tensor) -> Tensor:
        """From the backend's layout to (B, L, C)."""
        raise NotImplementedError


def _plain(plan: Plan) -> tuple[tuple[int, int, bool, int], ...]:
    return tuple(tuple(segment) for segment in plan)


# Both are evaluated while a graph is compiled.
@constexpr
def last_scale(count: int, offsets: tuple[int, ...]) -> int:
    """The scale that a sequence of ``count`` tokens ends with."""
    if count not in offsets[1:]:
        raise InputError(
            f"sequence has {count} tokens; expected {offsets[-1]}, those of the schedule "
            f"(or of its first scales: one of {offsets[1:]})"
        )
    return offsets.index(count) - 1


@constexpr
def check_tokens(count: int, index: int, tokens: tuple[int, ...]) -> None:
    """Raises InputError unless scale ``index`` has as many tokens."""
    if count != tokens[index]:
        raise InputError(
            f"sequence has {count} tokens; expected {tokens[index]}, those of scale {index}"
        )
