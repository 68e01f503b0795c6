"""How block-causal attention over all scales is cut into calls.

Every scale sees a prefix of the keys (``ScaleSchedule.visible``), so a fine scale is one unmasked
call. Coarse scales are many and small: one masked call for all of them wastes scores but saves
launches.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from var_tokenizer import ScaleSchedule

from var_transformer.attention.devices import Device


class Segment(NamedTuple):
    """One call: queries begin to end against keys 0 to end; masked if it joins scales.

    reach: how far ahead of itself a query of a masked call sees, in tokens. If the operator
    takes a band, keys farther ahead cost nothing; if not, reach is end - 1.
    """

    begin: int
    end: int
    masked: bool
    reach: int

    @property
    def scores(self) -> int:
        """Query-key products for one head and image."""
        # a masked call begins at 0, and its band leaves out a triangle
        out = max(self.end - 1 - self.reach, 0) if self.masked else 0
        return (self.end - self.begin) * self.end - out * (out + 1) // 2


Plan = tuple[Segment, ...]


def cut_at(schedule: ScaleSchedule, coarse: int, banded: bool = False) -> Plan:
    """The first ``coarse`` scales (at least 1) in one call, every later one in its own."""
    ends = schedule.offsets[coarse:]
    # the first token of a scale sees the last one of that scale
    reach = max(schedule.tokens[:coarse]) - 1 if banded else ends[0] - 1
    first = Segment(0, ends[0], coarse > 1, reach)
    return (first, *(Segment(b, e, False, e - 1) for b, e in itertools.pairwise(ends)))


def cut(schedule: ScaleSchedule, cost: Callable[[Plan], float], banded: bool = False) -> Plan:
    """The plan with the least cost."""
    return min((cut_at(schedule, k + 1, banded) for k in range(len(schedule))), key=cost)


def scores(plan: Plan) -> int:
    """Query-key products of all calls, for one head and image; the full mask has L * L."""
    return sum(segment.scores for segment in plan)


def scores_and(launch: float) -> Callable[[Plan], float]:
    """A cost function: the scores, plus ``launch`` scores for starting each call."""
    return lambda plan: len(plan) * launch + scores(plan)


def launch_scores(device: Device, heads: int, head_width: int) -> float:
    """The cost of starting a call, in scores of one head and image.

    heads: of all images together. A score is 2 * head_width multiply-adds: one product with the
    key, one with the value.
    """
    return device.launch * device.flops / (4 * head_width * heads)


class AttentionWork(NamedTuple):
    """The work of attention over all scales, in one block.

    scores: for one head and image. called, copied: token rows that the calls, and the splits,
    joins and sums around them, read and write. calls, copies: their launches.
    """

    scores: float
    called: int
    copied: int
    calls: int
    copies: int


def forward_work(plan: Plan) -> AttentionWork:
    """The work of ``NextScaleAttention`` over all scales."""
    called = sum(2 * (s.end - s.begin) + 2 * s.end for s in plan)
    if len(plan) == 1:
        return AttentionWork(scores(plan), called, 0, 1, 0)
    # splits queries, keys and values; joins keys and values for all calls but the first and the
    # last; joins the results
    copied = 4 * 2 * plan[-1].end + 2 * 2 * sum(s.end for s in plan[1:-1])
    return AttentionWork(scores(plan), called, copied, len(plan), 4 + 2 * (len(plan) - 2))


def gradient_work(plan: Plan) -> AttentionWork:
    """Five products for the forward's two (the weights are computed again), twice the rows."""
    forward = forward_work(plan)
    added = added_launches = 0
    if len(plan) > 1:  # gradients of keys and values come in pieces, which are added
        later = sum(s.end for s in plan[1:])
        added, added_launches = 2 * (2 * later + 2 * plan[-1].end), 2 * len(plan)
    return AttentionWork(
        2.5 * forward.scores,
        2 * forward.called,
        forward.copied + added,
        forward.calls,
        forward.copies + added_launches,
    )


def training_seconds(device: Device, heads: int, head_width: int) -> Callable[[Plan], float]:
    """A cost function: the least time of a plan's calls and copies, forward and backward.

    Launches, and the slower of products and memory; copies are kernels of their own, so their time
    adds to that of the calls. heads: of all images together.
    """
    row_seconds = heads * head_width * device.itemsize / device.bandwidth
    score_seconds = 4 * head_width * heads / device.flops

    def seconds(plan: Plan) -> float:
        passes = forward_work(plan), gradient_work(plan)
        launches = sum(work.calls + work.copies for work in passes)
        called = sum(work.called for work in passes) * row_seconds
        products = sum(work.scores for work in passes) * score_seconds
        copied = sum(work.copied for work in passes) * row_seconds
        return launches * device.launch + max(products, called) + copied

    return seconds
