"""The published initialization of a transformer: each rule a function, and ``initialize`` for all.

Weights are normal, biases zero, and the learned attention scale starts at 4. The random numbers
depend on the seed and on the order of the draws, which is that of ``initialize``.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from mindspore import Parameter, Tensor

from var_transformer.model.config import TransformerConfig

if TYPE_CHECKING:
    from var_transformer.model.transformer import Transformer


def weight_std(config: TransformerConfig) -> float:
    """For every weight without a rule of its own: sqrt(1 / (3 C))."""
    return math.sqrt(1 / (3 * config.width))


def residual_std(config: TransformerConfig) -> float:
    """For the last layer of a branch: smaller, because the sum of 2 * depth branches grows."""
    return weight_std(config) / math.sqrt(2 * config.depth)


def head_std(config: TransformerConfig) -> float:
    """For the layer that gives the logits (published as init_head): close to zero."""
    return 0.02 * weight_std(config)


def shared_modulation_std(config: TransformerConfig) -> float:
    """For the offset that each block adds to the shared AdaLN layer: 1 / sqrt(C)."""
    return config.width**-0.5


def scale_modulation(array: np.ndarray, width: int, gate_gain: float) -> None:
    """In place: gates times ``gate_gain`` (alng), scales and shifts times 0.5 (init_adaln).

    So every block starts close to the identity. array: six groups of ``width`` rows or numbers.
    """
    array_6 = array.reshape(6, width, -1)
    array_6[:2] *= gate_gain
    array_6[2:] *= 0.5


def log_attention_scale(heads: int) -> np.ndarray:
    """The learned scale of cosine attention starts at 4 for each head; it is kept as log."""
    return np.full((1, heads, 1, 1), math.log(4), np.float32)


def initialize(model: "Transformer", seed: int, gate_gain: float) -> None:
    """Draws all weights of a model whose weights are zeros. gate_gain: see ``scale_modulation``."""
    config, rng = model.config, np.random.default_rng(seed)
    std, residual = weight_std(config), residual_std(config)

    def normal(parameter: Parameter, std: float) -> np.ndarray:
        # published as truncated at +-2, which no weight reaches with such a small deviation
        return (std * rng.standard_normal(parameter.shape)).astype(np.float32)

    def draw(parameter: Parameter, std: float) -> None:
        parameter.set_data(Tensor(normal(parameter, std)))

    draw(model.word_embed.weight, std)
    draw(model.class_emb.weight, std)
    draw(model.pos_start, std)
    draw(model.pos_1LC, std)
    draw(model.lvl_embed.weight, std)
    if config.shared_adaln:
        draw(model.shared_ada_lin[1].weight, std)
    for block in model.blocks:
        draw(block.attn.mat_qkv.weight, std)
        if config.qk_l2_norm:
            block.attn.scale_mul_1H11.set_data(Tensor(log_attention_scale(config.heads)))
        draw(block.attn.proj.weight, residual)
        draw(block.ffn.fc1.weight, std)
        draw(block.ffn.fc2.weight, residual)
        if config.shared_adaln:
            modulation, its_std = block.ada_gss, shared_modulation_std(config)
        else:
            modulation, its_std = block.ada_lin[1].weight, std
        array = normal(modulation, its_std)
        scale_modulation(array, config.width, gate_gain)
        modulation.set_data(Tensor(array))
    head_modulation = model.head_nm.ada_lin[1].weight
    head_modulation.set_data(Tensor(normal(head_modulation, std) * np.float32(0.5)))  # init_adaln
    draw(model.head.weight, head_std(config))
