"""The next-scale transformer of VAR: token maps -> next token map."""

from var_transformer.config import TransformerConfig

__all__ = ["TransformerConfig"]
