"""From logits to token ids, on the host: filters, random draws, and Gumbel mixing."""

import numpy as np


def filter_logits(logits_blv: np.ndarray, top_k: int = 0, top_p: float = 0.0) -> np.ndarray:
    """Logits with all but the likeliest tokens set to -inf.

    top_k: keeps the k largest and all that equal the k-th; 0 keeps all. top_p: keeps the
    smallest set of likeliest tokens whose probabilities sum to at least top_p; 0 and 1 keep all.
    """
    if top_k and top_k < logits_blv.shape[-1]:
        kth = np.partition(logits_blv, -top_k, axis=-1)[..., -top_k, None]
        logits_blv = np.where(logits_blv < kth, -np.inf, logits_blv)
    if 0 < top_p < 1:
        order = np.argsort(logits_blv, axis=-1, kind="stable")
        ranked = softmax(np.take_along_axis(logits_blv, order, -1))
        drop_ranked = np.cumsum(ranked, -1) <= 1 - top_p
        drop_ranked[..., -1] = False
        drop = np.empty_like(drop_ranked)
        np.put_along_axis(drop, order, drop_ranked, -1)
        logits_blv = np.where(drop, -np.inf, logits_blv)
    return logits_blv


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in the dtype of ``logits``."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def draw(probabilities_blv: np.ndarray, uniform_bl: np.ndarray) -> np.ndarray:
    """One token id each, (B, l) int32, by inverting the cumulative distribution.

    uniform_bl: in [0, 1). Tokens of probability 0 are never drawn.
    """
    cumulative = np.cumsum(probabilities_blv, -1, dtype=np.float64)
    threshold = uniform_bl[..., None] * cumulative[..., -1:]
    return (cumulative <= threshold).sum(-1).astype(np.int32)


def gumbel_mixture(logits_blv: np.ndarray, uniform_blv: np.ndarray, ratio: float) -> np.ndarray:
    """Weights (B, l, V) that mix codes in place of one drawn code ("more smooth" sampling).

    A Gumbel softmax (arXiv:1611.01144) of the sharpened logits, whose temperature falls with
    ``ratio``, the position of the scale in [0, 1], as in the released sampler. uniform_blv:
    in (0, 1).
    """
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    gumbel = -np.log(-np.log(uniform_blv))
    return softmax((logits_blv * (1 + ratio) + gumbel) / temperature).astype(np.float32)
