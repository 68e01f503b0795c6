"""Which kind of model a file holds, and the refusal of a wrong kind."""

from collections.abc import Mapping, Sequence

from var_tokenizer.common import InputError, quoted

from var_convert.formats.weights import Weights

Models = Mapping[str, Weights]  # by kind

KINDS = ("tokenizer", "transformer")


def choose_kind(shown: str, models: Sequence[Weights], only: str | None) -> tuple[str, Models]:
    """The kind of model to open in a file, and the file's models by kind.

    shown: how messages name the file. only: the requested kind, if any. Raises InputError
    if the file holds none of that kind, or two models and nothing says which.
    """
    found = {kind_of(weights): weights for weights in models}
    if only is None and len(found) > 1:
        raise InputError(
            f"{shown}: holds {' and '.join(found)}; choose with --only {' or --only '.join(found)}"
        )
    kind = only or next(iter(found))
    if kind not in found:
        raise InputError(f"{shown}: holds a {', '.join(found)}; expected a {kind}")
    return kind, found


def is_native(weights: Weights) -> bool:
    """Whether this project wrote the file, so that its metadata says what it holds."""
    return weights.metadata.get("format") == "var-mindspore"


def kind_of(weights: Weights) -> str:
    """Which of KINDS it is, by its metadata or else by the tensors' names.

    Raises InputError if it is neither.
    """
    if is_native(weights):
        kind = weights.metadata.get("kind")
        if kind not in KINDS:
            raise InputError(
                f"{weights.source}: kind is {quoted(str(kind))!r} in its metadata; "
                f"expected {' or '.join(KINDS)}"
            )
        return kind
    names = weights.tensors
    if any(name.startswith(("blocks.", "word_embed.")) for name in names):
        return "transformer"
    if any(name.startswith(("encoder.", "decoder.", "quantize.")) for name in names):
        return "tokenizer"
    shown = ", ".join(quoted(name) for name in list(names)[:3]) + (
        "" if len(names) <= 3 else ", ..."
    )
    raise InputError(
        f"{weights.source}: not weights of VAR: it holds {shown or 'no tensors'}; "
        "expected the published names, e.g. encoder.conv_in.weight or word_embed.weight"
    )
