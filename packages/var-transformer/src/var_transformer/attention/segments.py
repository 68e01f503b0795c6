"""Where block-causal attention is cut into calls that waste little.

Every scale sees a plain prefix of the keys, so that a fine scale is one unmasked call. Coarse
scales are many and small: together under one mask they waste scores but save launches.
"""

import itertools
from dataclasses import dataclass

from var_tokenizer import ScaleSchedule

from var_transformer.devices import Device


@dataclass(frozen=True)
class Segment:
    """One call: queries begin to end against keys 0 to end; masked where it joins scales."""

    begin: int
    end: int
    masked: bool

    @property
    def scores(self) -> int:
        """Query-key products a head and image."""
        return (self.end - self.begin) * self.end


def cut_at(schedule: ScaleSchedule, coarse: int) -> tuple[Segment, ...]:
    """The first ``coarse`` scales (at least 1) in one call, every later one in its own."""
    ends = schedule.offsets[coarse:]
    first = Segment(0, ends[0], masked=coarse > 1)
    return (first, *(Segment(b, e, False) for b, e in itertools.pairwise(ends)))


def cut(schedule: ScaleSchedule, launch: float) -> tuple[Segment, ...]:
    """The segments that cost least, where a call costs as much as ``launch`` scores."""
    plans = (cut_at(schedule, coarse) for coarse in range(1, len(schedule) + 1))
    return min(plans, key=lambda plan: len(plan) * launch + scores(plan))


def scores(plan: tuple[Segment, ...]) -> int:
    """Query-key products of all calls, a head and image; the full mask has L * L."""
    return sum(segment.scores for segment in plan)


def launch_scores(device: Device, heads: int, head_width: int) -> float:
    """What a call costs to start, in scores of a head and image.

    heads: of all images together. A score is 2 * head_width multiply-adds: one product with the
    key, one with the value.
    """
    return device.launch * device.flops / (4 * head_width * heads)
