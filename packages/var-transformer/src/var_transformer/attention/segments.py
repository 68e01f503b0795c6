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


def training_seconds(device: Device, heads: int, head_width: int) -> Callable[[Plan], float]:
    """A cost function: the least time of a plan's calls, forward and backward.

    Launches, products (4 flops a score and head width forward, 10 backward) and memory. Cutting
    moves more of it: queries, keys and values are split, prefixes joined, and their gradients
    split, joined and added up. heads: of all images together.
    """
    row = heads * head_width * device.itemsize  # bytes of one token's queries

    def seconds(plan: Plan) -> float:
        length, middles = plan[-1].end, max(len(plan) - 2, 0)
        rows = sum(6 * (s.end - s.begin) + 6 * s.end for s in plan)
        launches = 2 * len(plan)
        if len(plan) > 1:
            rows += (
                16 * length + sum(8 * s.end for s in plan[1:-1]) + sum(6 * s.end for s in plan[1:])
            )
            launches += 8 + 6 * middles
        flops = 14 * head_width * heads * scores(plan)
        return launches * device.launch + max(flops / device.flops, rows * row / device.bandwidth)

    return seconds
