"""Where block-causal attention over all scales is cut into calls.

Every scale sees a plain prefix of the keys, so that a fine scale is one unmasked call. Coarse
scales are many and small: together under one mask they waste scores but save launches.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from var_tokenizer import ScaleSchedule

from var_transformer.attention.devices import Device


class Segment(NamedTuple):
    """One call: queries begin to end against keys 0 to end; masked where it joins scales.

    reach: how many keys beyond its own place a query of a masked call goes. What is farther away
    costs nothing where the operator takes a band; end - 1 where it does not.
    """

    begin: int
    end: int
    masked: bool
    reach: int

    @property
    def scores(self) -> int:
        """Query-key products a head and image."""
        # of a masked call, which begins at 0, the band leaves out a triangle
        out = max(self.end - 1 - self.reach, 0) if self.masked else 0
        return (self.end - self.begin) * self.end - out * (out + 1) // 2


Plan = tuple[Segment, ...]


def cut_at(schedule: ScaleSchedule, coarse: int, banded: bool = False) -> Plan:
    """The first ``coarse`` scales (at least 1) in one call, every later one in its own."""
    ends = schedule.offsets[coarse:]
    # the first token of a scale sees its last one
    reach = max(schedule.tokens[:coarse]) - 1 if banded else ends[0] - 1
    first = Segment(0, ends[0], coarse > 1, reach)
    return (first, *(Segment(b, e, False, e - 1) for b, e in itertools.pairwise(ends)))


def cut(schedule: ScaleSchedule, cost: Callable[[Plan], float], banded: bool = False) -> Plan:
    """The segments that cost least."""
    return min((cut_at(schedule, k + 1, banded) for k in range(len(schedule))), key=cost)


def scores(plan: Plan) -> int:
    """Query-key products of all calls, a head and image; the full mask has L * L."""
    return sum(segment.scores for segment in plan)


def scores_and(launch: float) -> Callable[[Plan], float]:
    """A cost: the scores, where a call to start costs as much as ``launch`` of them."""
    return lambda plan: len(plan) * launch + scores(plan)


def launch_scores(device: Device, heads: int, head_width: int) -> float:
    """What a call costs to start, in scores of a head and image.

    heads: of all images together. A score is 2 * head_width multiply-adds: one product with the
    key, one with the value.
    """
    return device.launch * device.flops / (4 * head_width * heads)
