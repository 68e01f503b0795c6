"""Drop path, or stochastic depth (arXiv:1603.09382): images skip branches of blocks at random."""

import numpy as np


def drop_path_rates(last: float, depth: int) -> np.ndarray:
    """(depth,): the rate of each block, growing linearly from 0 at the first to ``last``."""
    return np.linspace(0, last, depth)


def draw_drop_path(rng: np.random.Generator, rates_d: np.ndarray, batch: int) -> np.ndarray:
    """(depth, 2, batch, 1, 1) float32, by which the branches of the blocks are multiplied.

    It is 0 for a branch that an image skips, else 1 / (1 - rate).
    """
    rates_d1111 = rates_d.reshape(-1, 1, 1, 1, 1)
    stays_d2b11 = rng.random((len(rates_d), 2, batch, 1, 1)) >= rates_d1111
    return (stays_d2b11 / (1 - rates_d1111)).astype(np.float32)
