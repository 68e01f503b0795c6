"""The mask of next-scale attention: a token sees its own scale and all coarser ones."""

import numpy as np
from mindspore import Tensor
from mindspore.ops import constexpr
from var_tokenizer import Scale, ScaleSchedule


@constexpr  # evaluated while a graph is compiled
def block_causal_mask(
    scales: tuple[Scale, ...], end: int, visible: float | bool, hidden: float | bool
) -> Tensor:
    """(end, end): the block-causal mask of the first ``end`` queries (rows) and keys (columns)."""
    see_ll = ScaleSchedule(scales).visible[:end, :end]
    mask_ll = np.where(see_ll, visible, hidden)
    return Tensor(mask_ll if mask_ll.dtype == bool else mask_ll.astype(np.float32))
