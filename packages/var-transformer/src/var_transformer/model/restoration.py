"""A scale of which only some tokens pass through the blocks (arXiv:2503.23367).

The others are restored from the last scale that was passed whole. The paper restores them after
each branch of each block. Where all blocks leave out the same tokens, no block reads what another
restored, and what is restored adds up: to what all blocks together added to that scale's tokens.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import InputError

from var_transformer.attention import Cache, KeysValues

Size = tuple[int, int]
ThroughBlocks = Callable[[np.ndarray, tuple[int, int]], tuple[np.ndarray, KeysValues]]
"""f(x (B, n, C), span) -> (x after the blocks, cache as of ``Transformer.grow``): what lies at
positions span[0] to span[1] of the cache."""


def pass_some(
    schedule: ScaleSchedule,
    k: int,
    embedded_blc: np.ndarray,
    cache: Cache,
    some_bn: np.ndarray | None,
    through_blocks: ThroughBlocks,
) -> tuple[np.ndarray, Cache]:
    """What the head reads of scale k, (B, s_y * s_x, C), and the cache grown by it.

    embedded_blc: what the first block would read. some_bn: as of ``Transformer.extend_some``.
    """
    begin, tokens = schedule.offsets[k] - cache.pruned, schedule.tokens[k]
    if some_bn is None:
        passed_blc, grown = through_blocks(embedded_blc, (begin, begin + tokens))
        cache = replace(cache, added_blc=passed_blc - embedded_blc, whole=k)
        return passed_blc, cache.after(grown)
    if cache.added_blc is None:
        raise InputError(f"cache holds no whole scale of extend_some; scale {k} expects one")
    count, some = some_bn.shape[1], (np.arange(len(some_bn))[:, None], some_bn)
    passed_bnc, grown = through_blocks(embedded_blc[some], (begin, begin + count))
    restored_blc = resized(cache.added_blc, schedule.sizes[cache.whole], schedule.sizes[k])
    whole_blc = embedded_blc + restored_blc
    whole_blc[some] = passed_bnc
    return whole_blc, cache.after(grown, tokens - count)


def resized(map_blc: np.ndarray, size: Size, new_size: Size) -> np.ndarray:
    """A map (B, s_y * s_x, C) of ``size``, (s_y, s_x), at ``new_size``, by linear interpolation.

    A token is the centre of its cell; beyond the outermost centres the map stays as it is there.
    """
    (rows, columns), (b, _, c) = size, map_blc.shape
    map_byxc = map_blc.reshape(b, rows, columns * c)
    map_byxc = (_weights(rows, new_size[0]) @ map_byxc).reshape(b * new_size[0], columns, c)
    return (_weights(columns, new_size[1]) @ map_byxc).reshape(b, new_size[0] * new_size[1], c)


def _weights(old: int, new: int) -> np.ndarray:
    """(new, old) float32: the share of each old cell in each new one."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(old)), 0).astype(np.float32)
