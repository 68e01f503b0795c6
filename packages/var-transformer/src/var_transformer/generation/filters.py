"""From logits to token ids, on the host: filters, random draws, and Gumbel mixing."""

from typing import NoReturn

import numpy as np
from var_tokenizer.common import InputError


def filter_logits(logits_blv: np.ndarray, top_k: int = 0, top_p: float = 0.0) -> np.ndarray:
    """Logits with all but the likeliest tokens set to -inf.

    top_k: keeps the k largest and all equal to the k-th; 0 keeps all. top_p: keeps the
    smallest set of likeliest tokens whose probabilities sum to at least top_p; among equal ones it
    keeps the later. 0 and 1 keep all.
    """
    top_k = min(top_k, logits_blv.shape[-1])
    if not 0 < top_p < 1:
        if not top_k:
            return logits_blv
        kth = np.partition(logits_blv, -top_k, axis=-1)[..., -top_k, None]
        return np.where(logits_blv < kth, -np.inf, logits_blv)
    # sort values, not indices: argsort takes several times as long
    ranked = np.sort(logits_blv, -1)
    if top_k:
        ranked[ranked < ranked[..., -top_k, None]] = -np.inf
    reached = np.cumsum(softmax(ranked), -1)[..., :-1]
    dropped_bl = np.count_nonzero(reached <= 1 - top_p, -1)
    least = np.take_along_axis(ranked, dropped_bl[..., None], -1)
    keep = logits_blv >= least
    surplus_bl = np.count_nonzero(keep, -1) + dropped_bl - logits_blv.shape[-1]
    for row in zip(*np.nonzero(surplus_bl), strict=True):
        equal = np.flatnonzero(logits_blv[row] == least[row])
        keep[row][equal[: surplus_bl[row]]] = False
    return np.where(keep, logits_blv, -np.inf)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in the dtype of ``logits``."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def draw(probabilities_blv: np.ndarray, uniform_bl: np.ndarray) -> np.ndarray:
    """One token id for each row, (B, l) int32, by inverting the cumulative distribution.

    uniform_bl: in [0, 1). Tokens of probability 0 are never drawn. Raises InputError for NaN.
    """
    cumulative = np.cumsum(probabilities_blv, -1, dtype=np.float64)
    if not np.isfinite(cumulative[..., -1]).all():  # NaN compares false: it would draw token 0
        refuse_nan()
    threshold = uniform_bl[..., None] * cumulative[..., -1:]
    return np.count_nonzero(cumulative <= threshold, -1).astype(np.int32)


def refuse_nan() -> NoReturn:
    """Raises InputError for probabilities that are NaN."""
    raise InputError(
        "probabilities are NaN; expected finite logits: the weights hold NaN or infinity, or "
        "overflow in the model's type"
    )


def gumbel_mixture(logits_blv: np.ndarray, uniform_blv: np.ndarray, ratio: float) -> np.ndarray:
    """Weights (B, l, V) that mix codes, instead of one drawn code ("more smooth" sampling).

    A Gumbel softmax (arXiv:1611.01144) of the sharpened logits, whose temperature falls with
    ``ratio``, the position of the scale in [0, 1], as in the released sampler. uniform_blv:
    in (0, 1).
    """
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    gumbel = -np.log(-np.log(uniform_blv))
    return softmax((logits_blv * (1 + ratio) + gumbel) / temperature).astype(np.float32)
