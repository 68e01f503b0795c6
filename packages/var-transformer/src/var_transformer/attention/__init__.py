"""Next-scale attention: every token of scale k sees all tokens of scales 0 to k.

One interface for training (all scales at once, arXiv:2404.02905, figure 4) and generation (one
scale after another, with a cache); the models never ask what is behind it.

    attend = build(schedule, heads, head_width, unit_length)
    y_blc, _ = attend(q_blc, k_blc, v_blc, scale, None, ())               # all scales at once
    y_blc, kept = attend(q_blc, k_blc, v_blc, scale, k, cache_of_block)   # scale k alone
"""

from mindspore import nn
from var_tokenizer import ScaleSchedule

from var_transformer.attention.cache import Cache
from var_transformer.attention.portable import PortableAttention

__all__ = ["Cache", "build"]


def build(schedule: ScaleSchedule, heads: int, head_width: int, unit_length: bool) -> nn.Cell:
    """The attention of one block, for the device at hand.

    unit_length: scales queries and keys to length 1 first (QK-L2).
    """
    return PortableAttention(schedule, heads, unit_length)
