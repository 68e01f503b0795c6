"""The next-scale transformer of VAR: token maps -> next token map."""

import var_tokenizer  # noqa: F401 (first: it quiets MindSpore's import in commands)

from var_transformer.attention import BackendConfig
from var_transformer.edit import box_mask, edit, tokens_to_redraw
from var_transformer.generation.generate import Generation, Refiner, check_pair, generate
from var_transformer.generation.sampler import Sampler, check_sampler
from var_transformer.model.config import TransformerConfig
from var_transformer.model.shapes import transformer_shapes
from var_transformer.model.transformer import Transformer, check_class_names, parse_class_names

__all__ = [
    "BackendConfig",
    "Generation",
    "Refiner",
    "Sampler",
    "Transformer",
    "TransformerConfig",
    "box_mask",
    "check_class_names",
    "check_pair",
    "check_sampler",
    "edit",
    "generate",
    "parse_class_names",
    "tokens_to_redraw",
    "transformer_shapes",
]
