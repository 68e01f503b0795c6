"""The next-scale transformer of VAR: token maps -> next token map."""

from var_transformer.config import TransformerConfig
from var_transformer.generate import Generation, check_pair, check_sampler, generate
from var_transformer.transformer import Transformer

__all__ = [
    "Generation",
    "Transformer",
    "TransformerConfig",
    "check_pair",
    "check_sampler",
    "generate",
]
