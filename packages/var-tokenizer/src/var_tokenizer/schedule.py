"""The sizes of the token maps, coarse to fine, which tokenizer and transformer share."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from var_tokenizer.common.checks import is_integer
from var_tokenizer.common.errors import InputError

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)

# Memory for a schedule grows with the square of its tokens (masks, resizing matrices) and the cube
# of its scales. These limits keep it below 2 GB: a latent map of 64 x 64 fits, 128 x 128 does not.
MOST_SCALES, MOST_TOKENS = 64, 16_384

Scale = int | tuple[int, int]


def _canonical(scales: Iterable[Scale]) -> tuple[Scale, ...]:
    """An int for a square map, ``(rows, columns)`` otherwise; see ``ScaleSchedule`` for errors."""
    canonical: list[Scale] = []
    rows_before, columns_before = 1, 1
    try:
        entries = list(scales)
    except TypeError:
        raise InputError(f"scales is {scales!r}; expected a sequence of sizes") from None
    if len(entries) > MOST_SCALES:
        raise InputError(f"scales holds {len(entries)} sizes; expected at most {MOST_SCALES}")
    for entry in entries:
        pair = tuple(entry) if isinstance(entry, tuple | list) else (entry, entry)
        if len(pair) != 2 or not all(is_integer(n) for n in pair):
            raise InputError(f"scales holds {entry!r}; expected an int or a (rows, columns) pair")
        rows, columns = int(pair[0]), int(pair[1])
        if rows < rows_before or columns < columns_before:
            raise InputError(
                f"scales holds {entry!r} after ({rows_before}, {columns_before}); "
                "expected positive sizes that never shrink"
            )
        rows_before, columns_before = rows, columns
        canonical.append(rows if rows == columns else (rows, columns))
    tokens = sum(s * s if isinstance(s, int) else s[0] * s[1] for s in canonical)
    if tokens > MOST_TOKENS:
        raise InputError(
            f"scales is {canonical} of {tokens} tokens; expected at most {MOST_TOKENS}"
        )
    if not canonical:
        raise InputError("scales is empty; expected at least one size")
    return tuple(canonical)


@dataclass(frozen=True)
class ScaleSchedule:
    """K token-map sizes, coarse to fine (arXiv:2404.02905, section 3.2).

    scales: an int for a square map or ``(rows, columns)``; sizes never shrink. The tokens of all
    scales form one sequence of ``length`` tokens, scale after scale.

    Raises InputError for an empty schedule, sizes that are not positive and non-decreasing, more
    than 64 scales, and more than 16,384 tokens.
    """

    scales: tuple[Scale, ...] = SCALES_256

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", _canonical(self.scales))

    def __len__(self) -> int:
        """K, the number of scales."""
        return len(self.scales)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each scale."""
        return tuple((s, s) if isinstance(s, int) else s for s in self.scales)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Number of tokens of each scale."""
        return tuple(rows * columns for rows, columns in self.sizes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """K+1 positions: scale k occupies ``offsets[k]:offsets[k + 1]`` of the sequence."""
        return (0, *(int(n) for n in np.cumsum(self.tokens)))

    @property
    def length(self) -> int:
        """L, the number of tokens of all scales together."""
        return self.offsets[-1]

    @cached_property
    def scale_of_token(self) -> np.ndarray:
        """(L,) int32: the scale index of every position of the sequence."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.tokens)

    @cached_property
    def visible(self) -> np.ndarray:
        """(L, L) bool: a query (row) sees the keys (columns) of its own and all coarser scales."""
        return self.scale_of_token[:, None] >= self.scale_of_token[None, :]

    def split(self, sequence: np.ndarray, axis: int = 1) -> list[np.ndarray]:
        """A sequence of all L tokens, split along ``axis`` into K views, one for each scale."""
        return np.split(sequence, self.offsets[1:-1], axis=axis)
