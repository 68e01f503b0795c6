"""Keys and values of the scales that a generation has finished."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from mindspore import Tensor
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import InputError, check_integer, free_memory, one_at_a_time

KeysValues: TypeAlias = tuple[Tensor, ...]
"""Keys and values of one block or of several, in the backend's own layout."""


@dataclass(frozen=True)
class Cache:
    """Keys and values of a batch, after the first ``scales`` scales of the schedule.

    tensors: keys and values of block 0, of block 1, ...; the first axis is the images, the rest
    is up to the backend. If the backend writes in place, caches of later scales share the
    tensors of earlier ones. pruned: how many tokens of each image have no keys and values, because
    the blocks left them out. added_blc: what the blocks added to each token of scale ``whole``, the
    last that was passed whole, (B, s_y * s_x, C); None unless ``extend_some`` passed it.
    """

    batch: int
    tensors: KeysValues = ()
    scales: int = 0
    pruned: int = 0
    added_blc: np.ndarray | None = None
    whole: int = 0

    def check(self, schedule: ScaleSchedule, k: int, batch: int) -> None:
        """Raises InputError unless ``batch`` images can be extended by scale k."""
        if self.batch != batch:
            raise InputError(f"cache is of a batch of {self.batch}; expected {batch}, the inputs'")
        if self.scales == len(schedule):
            raise InputError(
                f"cache is full: it holds all {self.scales} scales ({schedule.length} tokens)"
            )
        check_integer("scale", k, 0, len(schedule) - 1)
        if self.scales != k:
            raise InputError(f"cache holds {self.scales} scales; scale {k} expects {k}")

    def check_whole(self) -> None:
        """Raises InputError if tokens are missing, which moves the places of all later ones."""
        if self.pruned:
            raise InputError(
                f"cache is without {self.pruned} tokens that extend_some left out; expected "
                "extend_some for the later scales, too"
            )

    def after(self, tensors: KeysValues, left_out: int = 0) -> "Cache":
        """The cache one scale later, of which ``left_out`` tokens are missing.

        tensors: () if they were written in place.
        """
        pruned = self.pruned + left_out
        return replace(self, tensors=tensors or self.tensors, scales=self.scales + 1, pruned=pruned)

    def first(self, count: int) -> "Cache":
        """The cache of only the first ``count`` images; the memory of this one is freed.

        The tensors are copied, because a graph copies a slice, a view of a larger tensor, at
        every call: what it writes in place would be lost.
        """
        first: list[Tensor] = []
        added_blc = None if self.added_blc is None else self.added_blc[:count]
        with one_at_a_time:
            for tensor in self.tensors:  # one by one: the two caches are never both in memory
                first.append(tensor[:count].copy())
                free_memory(tensor)
        return replace(self, batch=count, tensors=tuple(first), added_blc=added_blc)

    def release(self) -> None:
        """Frees the memory of all caches of this batch; none of them can be used any more.

        A compiled function keeps its last arguments, so without this the cache would still take
        memory while the decoder runs and the next generation fills its own.
        """
        with one_at_a_time:
            for tensor in self.tensors:
                free_memory(tensor)
