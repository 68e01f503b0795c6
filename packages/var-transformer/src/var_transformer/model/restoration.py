"""A scale of which only some tokens pass through the blocks (arXiv:2503.23367).

The others are restored from the last scale that was passed whole. The paper restores them after
each branch of each block. Where all blocks leave out the same tokens, no block reads what another
restored, and what is restored adds up: to what all blocks together added to that scale's tokens.
"""

from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore import Tensor
from var_tokenizer.common import InputError

from var_transformer.attention import Cache
from var_transformer.model.compiled_passes import TransformerPasses

Size = tuple[int, int]


def pass_some(
    passes: TransformerPasses,
    k: int,
    x_blc: Tensor,
    class_bc: Tensor,
    modulations: tuple[Tensor, ...],
    cache: Cache,
    some_bn: np.ndarray | None,
) -> tuple[Tensor, Cache]:
    """The body of ``Transformer.extend_some``, after the embedding of the tokens."""
    sizes, tokens = passes.model.config.schedule.sizes, x_blc.shape[1]
    embedded_blc, count, some = x_blc.asnumpy(), tokens, None
    if some_bn is not None:
        count, some = some_bn.shape[1], (np.arange(len(some_bn))[:, None], some_bn)
        x_blc = Tensor(embedded_blc[some])
    begin = passes.model.offsets[k] - cache.pruned
    span = passes.model.blocks[0].attn.attend.graph_input(k, (begin, begin + count))
    # plain tuples would be compiled in as constants
    modulations, past = ms.mutable(modulations), cache.tensors and ms.mutable(cache.tensors)
    passed_blc, grown = passes.blocks(span, x_blc, class_bc, modulations, past)
    if some is None:
        cache = replace(cache, added_blc=passed_blc.asnumpy() - embedded_blc, whole=k)
    else:
        if cache.added_blc is None:
            raise InputError(f"cache holds no whole scale of extend_some; scale {k} expects one")
        whole_blc = embedded_blc + resized(cache.added_blc, sizes[cache.whole], sizes[k])
        whole_blc[some] = passed_blc.asnumpy()
        passed_blc = Tensor(whole_blc)
    return passes.head(passed_blc, class_bc), cache.after(grown, tokens - count)


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
