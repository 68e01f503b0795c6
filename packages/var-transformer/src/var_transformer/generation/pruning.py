"""Which tokens of a scale pass through the blocks, if not all do (arXiv:2503.23367).

The paper takes the large scales for texture: tokens near the mean of their map, its lowest
frequency, hardly change any more. It chooses before each block; chosen once, before the first,
what it restores block by block is one sum, that of all blocks (``Transformer.extend_some``).
"""

import numpy as np


def pivotal_tokens(inputs_blz: np.ndarray, pruned: float) -> np.ndarray:
    """Places of the tokens that are farthest from the mean of their map, ascending, (B, n).

    inputs_blz: what the transformer reads. All but the share ``pruned``, below 1, of each map is
    chosen; of equally far tokens the earlier. Each image has its own choice: no other image, no
    class and no model has a part in it, so both halves of guidance choose alike.
    """
    inputs_blz = inputs_blz.astype(np.float64)
    distance_bl = ((inputs_blz - inputs_blz.mean(1, keepdims=True)) ** 2).sum(2)
    count = inputs_blz.shape[1] - int(pruned * inputs_blz.shape[1])
    return np.sort(np.argsort(-distance_bl, 1, kind="stable")[:, :count], 1)
