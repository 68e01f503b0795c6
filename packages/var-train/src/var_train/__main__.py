"""``python -m var_train``: lists this package's commands."""

from var_tokenizer.common.command import list_commands

list_commands("var_train", ("run", "tokenize", "evaluate", "launch"))
