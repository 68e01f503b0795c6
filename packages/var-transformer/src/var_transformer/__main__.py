"""``python -m var_transformer``: lists this package's commands."""

from var_tokenizer.common.command import list_commands

list_commands("var_transformer", ("sample", "edit", "serve", "cost", "check_ascend", "ascend_c"))
