"""Adapters (LoRA) added to a model's weights for good."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from var_tokenizer.common import InputError, quoted
from var_transformer import Transformer, merge_adapters, read_adapters


@dataclass(frozen=True)
class Merge:
    """What was written. classes: those of the merged model. parameters: of all adapters."""

    target: Path
    adapters: int
    classes: int
    parameters: int


def merge(
    model: str | os.PathLike[str],
    adapters: Sequence[str],
    target: str | os.PathLike[str],
    force: bool = False,
) -> Merge:
    """Writes a native transformer with adapters added to its weights as ``target``.

    adapters: FILE[:WEIGHT] each, a .safetensors or a folder as ``peft`` writes it. force: replace
    a target that exists.

    Raises InputError for unusable files, and for an adapter of another architecture.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"{quoted(target)}: expected a .safetensors, the native format")
    if target.exists() and not force:
        raise InputError(f"{quoted(target)}: exists; expected a new file (--force replaces it)")
    if not adapters:
        raise InputError("no adapter is given; expected one or more, --adapter FILE[:WEIGHT]")
    found = read_adapters(tuple(adapters))
    merged = Transformer.load(model)
    merge_adapters(merged, found)
    merged.save(target)
    count = sum(each.adapter.parameters for each in found)
    return Merge(target, len(found), merged.config.num_classes, count)
