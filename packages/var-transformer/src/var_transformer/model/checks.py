"""What a transformer, its class names and its tokenizer must agree on."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from mindspore import Tensor
from var_tokenizer import LatentCodec
from var_tokenizer.common import Array, InputError, check_shape, quoted

from var_transformer.attention import Cache
from var_transformer.model.config import TransformerConfig

if TYPE_CHECKING:
    from var_transformer.stored.stored_transformer import AnyTransformer

_LONGEST_NAME = 1000  # characters of a class name


def check_pair(model: "AnyTransformer", tokenizer: LatentCodec) -> None:
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


def check_labels(labels: Array, num_classes: int) -> Tensor:
    """Labels as an int32 tensor (B,); raises InputError for one out of range."""
    labels_b = np.asarray(labels)
    if labels_b.ndim != 1 or labels_b.dtype.kind not in "iu":
        raise InputError(
            f"labels have shape {labels_b.shape} and dtype {labels_b.dtype}; expected (B,) ints"
        )
    if not len(labels_b):
        raise InputError("labels are empty; expected at least one")
    for label in labels_b:
        if not 0 <= label <= num_classes:
            raise InputError(
                f"labels hold {label}; expected 0 to {num_classes - 1} "
                f"(or {num_classes} for no class)"
            )
    return Tensor(labels_b.astype(np.int32))


def check_pass(
    config: TransformerConfig, k: int, inputs_blz: Tensor | None, batch: int, cache: Cache
) -> None:
    """Raises InputError unless ``batch`` images can be extended by scale k from these inputs."""
    cache.check(config.schedule, k, batch)
    if (inputs_blz is None) != (k == 0):
        raise InputError(
            f"inputs of scale {k} are {'None' if k else 'given'}; expected them at "
            "every scale but 0"
        )
    if inputs_blz is not None:
        expected = (batch, config.schedule.tokens[k], config.latent_channels)
        check_shape(f"inputs of scale {k}", np.shape(inputs_blz), expected)


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
