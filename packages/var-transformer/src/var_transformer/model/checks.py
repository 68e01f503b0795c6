"""What a transformer, its class names and its tokenizer must agree on."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from var_tokenizer import LatentCodec
from var_tokenizer.common import InputError, quoted

if TYPE_CHECKING:
    from var_transformer.model.transformer import Transformer

_LONGEST_NAME = 1000  # characters of a class name


def check_pair(model: "Transformer", tokenizer: LatentCodec) -> None:
    """Raises InputError unless the transformer predicts the tokens of this tokenizer.

    If the transformer knows the checksum of the tokenizer that it was trained with, the
    tokenizer must have exactly those weights.
    """
    config = model.config
    for field, ours, theirs in (
        ("vocab_size", config.vocab_size, tokenizer.vocab_size),
        ("latent_channels", config.latent_channels, tokenizer.latent_channels),
        ("scales", config.scales, tokenizer.schedule.scales),
    ):
        if ours != theirs:
            raise InputError(
                f"{field} is {ours} in the transformer and {theirs} in the tokenizer; "
                "expected the same"
            )
    known = model.tokenizer_checksum
    if known is not None and not tokenizer.belongs_to(known):
        raise InputError(
            f"the tokenizer's weights are not those of {known}, which the transformer was trained "
            "with; expected the tokenizer that it was trained with"
        )


def check_class_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """``names`` as a tuple.

    Raises InputError unless they are ``num_classes`` strings of 1 to 1,000 characters.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise InputError(f"class_names is a {type(names).__name__}; expected a list of names")
    if len(names) != num_classes:
        raise InputError(f"class_names holds {len(names)} names; expected {num_classes}")
    for n, name in enumerate(names):
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
            what = f"of {len(name)} characters" if isinstance(name, str) else f"{type(name)}"
            raise InputError(
                f"class_names holds at {n} a name {what}; expected 1 to {_LONGEST_NAME} characters"
            )
    return tuple(names)


def parse_class_names(
    metadata: Mapping[str, str], source: str, num_classes: int
) -> tuple[str, ...] | None:
    """The class names in the metadata of a native file; None if it has none.

    The metadata may hold anything. Raises InputError, which names the file as ``source``, unless
    the names are one string for each class.
    """
    try:
        names = json.loads(metadata.get("class_names", "null"))
        return None if names is None else check_class_names(names, num_classes)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{source}: unusable class_names in its metadata: {quoted(str(error))}"
        ) from error
