"""``python -m var_train``: lists this package's commands."""

from var_transformer import list_commands

list_commands("var_train", ("run", "tokenize", "evaluate"))
