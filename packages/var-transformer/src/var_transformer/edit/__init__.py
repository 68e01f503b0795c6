"""Zero-shot editing: the function ``edit``, and ``python -m var_transformer.edit``.

This is a package so that importing the command's module does not replace the function
``var_transformer.edit`` with a module of that name.
"""

from var_transformer.generation.editing import box_mask, edit, tokens_to_redraw

__all__ = ["box_mask", "edit", "tokens_to_redraw"]
