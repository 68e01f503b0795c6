"""Which images a step takes: the order of an epoch, and batches of one size."""

from functools import lru_cache

import numpy as np
from var_tokenizer.common import InputError


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) int64, read only: the order of ``n`` images in an epoch, a permutation of 0..n-1.

    It depends on its arguments alone (seed and epoch, at least 0), so a resumed run sees the
    images that an uninterrupted one would have seen.
    """
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
    order.flags.writeable = False
    return order


def step_indices(n: int, batch: int, seed: int, step: int) -> np.ndarray:
    """(batch,) int64: which of ``n`` images a step takes, over all workers together.

    Epochs follow one another without a gap: each has every image once, and a batch may hold the
    end of one and the beginning of the next.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // n
    return np.concatenate(
        [epoch_order(n, seed, int(e))[positions[epochs == e] % n] for e in np.unique(epochs)]
    )


def steps_of(epochs: int, n: int, batch: int) -> int:
    """Steps that ``epochs`` over ``n`` images take; the last may begin another epoch.

    Raises InputError for a batch larger than the data.
    """
    if n < batch:
        raise InputError(f"batch is {batch}; expected at most {n}, the training images")
    return -(-epochs * n // batch)


def padded_batches(n: int, batch: int) -> np.ndarray:
    """(batches, batch) int64: the indices 0..n-1; repeats fill up the last batch.

    MindSpore compiles once for batches of one size.
    """
    return np.resize(np.arange(n), (-(-n // batch), batch))
