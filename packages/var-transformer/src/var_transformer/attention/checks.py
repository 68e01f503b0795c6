"""What is checked while a graph is compiled."""

from mindspore.ops import constexpr
from var_tokenizer import InputError


@constexpr
def check_tokens(count: int, index: int | None, tokens: tuple[int, ...]) -> None:
    """Raises InputError unless there are as many tokens as the schedule says."""
    expected = sum(tokens) if index is None else tokens[index]
    if count != expected:
        which = "all scales" if index is None else f"scale {index}"
        raise InputError(f"sequence has {count} tokens; expected {expected}, those of {which}")
