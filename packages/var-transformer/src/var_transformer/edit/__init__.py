"""Zero-shot editing: the function ``edit``, and ``python -m var_transformer.edit``.

A package, so that the command is a module of its own: importing it does not put a module where
``var_transformer.edit`` is the function.
"""

from var_transformer.generation.editing import box_mask, edit, tokens_to_redraw

__all__ = ["box_mask", "edit", "tokens_to_redraw"]
