"""Keys and values of the scales that a generation has finished."""

from dataclasses import dataclass, replace

from mindspore import Tensor
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import InputError, check_integer, one_at_a_time


@dataclass(frozen=True)
class Cache:
    """Keys and values of a batch, after the first ``scales`` scales of the schedule.

    tensors: keys and values of block 0, of block 1, ...; the images are the leading axis and the
    rest is the backend's own. Where the backend writes in place, caches of later scales share
    the tensors of earlier ones.
    """

    batch: int
    tensors: tuple[Tensor, ...] = ()
    scales: int = 0

    def check(self, schedule: ScaleSchedule, scale: int, batch: int) -> None:
        """Raises InputError unless ``batch`` images can be extended by ``scale``."""
        if self.batch != batch:
            raise InputError(f"cache is of a batch of {self.batch}; expected {batch}, the inputs'")
        if self.scales == len(schedule):
            raise InputError(
                f"cache is full: it holds all {self.scales} scales ({schedule.length} tokens)"
            )
        check_integer("scale", scale, 0, len(schedule) - 1)
        if self.scales != scale:
            raise InputError(f"cache holds {self.scales} scales; scale {scale} expects {scale}")

    def after(self, tensors: tuple[Tensor, ...]) -> "Cache":
        """The cache one scale later; no tensors where they were written in place."""
        return replace(self, tensors=tensors or self.tensors, scales=self.scales + 1)

    def first(self, count: int) -> "Cache":
        """The cache of the first ``count`` images alone; the memory of this one is freed.

        The tensors are copied: a graph copies a slice, which is a view of a larger tensor, at
        every call, so that what it writes in place would be lost.
        """
        kept = []
        with one_at_a_time:
            for tensor in self.tensors:  # one after another: room for both caches is never needed
                kept.append(tensor[:count].copy())
                tensor.untyped_storage().resize_(0)
        return replace(self, batch=count, tensors=tuple(kept))

    def release(self) -> None:
        """Frees the memory of all caches of this batch; none of them can be used any more.

        A compiled function keeps its last arguments, which would lie beside the decoder's maps
        and the next generation's cache.
        """
        with one_at_a_time:
            for tensor in self.tensors:
                tensor.untyped_storage().resize_(0)
