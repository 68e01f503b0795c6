"""The published initialization of a tokenizer: every rule, in one place.

Convolutions start like PyTorch's, norms as the identity, codes as standard normal vectors
(training may place them on data: ``var_train.training.codebook``). Weights are drawn in the order
in which the cells are built. If the generator is None, a file will supply them. They are then
zeros in memory that is never written, which takes no room.
"""

import math

import numpy as np
from mindspore import Parameter, Tensor

from var_tokenizer.config import TokenizerConfig

Rng = np.random.Generator | None


def convolution(
    rng: Rng, channels_in: int, channels_out: int, kernel: int
) -> tuple[Parameter, Parameter]:
    """Weight (O, k, k, I) and bias (O): uniform within 1 / sqrt(I * k * k)."""
    fan_in = channels_in * kernel * kernel
    weight = _uniform(rng, (channels_out, kernel, kernel, channels_in), fan_in)
    return weight, _uniform(rng, (channels_out,), fan_in)


def norm(channels: int) -> tuple[Parameter, Parameter]:
    """Gain (C) of ones and bias (C) of zeros."""
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return Parameter(Tensor(ones)), Parameter(Tensor(zeros))


def codes(rng: Rng, config: TokenizerConfig) -> Parameter:
    """The codebook (V, z): standard normal."""
    shape = (config.vocab_size, config.latent_channels)
    drawn = np.zeros(shape) if rng is None else rng.standard_normal(shape)
    return Parameter(Tensor(drawn.astype(np.float32)))


def usage(config: TokenizerConfig) -> Parameter:
    """The running usage (K, V) of the codes: zeros; not trained."""
    counts = np.zeros((len(config.scales), config.vocab_size), np.float32)
    return Parameter(Tensor(counts), requires_grad=False)


def _uniform(rng: Rng, shape: tuple[int, ...], fan_in: int) -> Parameter:
    if rng is None:
        return Parameter(Tensor.from_numpy(np.zeros(shape, np.float32)))  # not a copy
    bound = 1 / math.sqrt(fan_in)
    return Parameter(Tensor(rng.uniform(-bound, bound, shape).astype(np.float32)))
