"""Training of VAR."""

import var_tokenizer  # noqa: F401 (first: it quiets MindSpore's import in commands)
