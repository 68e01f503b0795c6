"""Which settings may change between two commands of a run, and why the others may not.

A checkpoint holds the settings of its stage. Those in ``_FREE`` say how a step is computed or what
is measured, and change the result by rounding at most: they may change. So may what no checkpoint
holds: the number of workers, the sharding of moments, the device, how attention is cut, ``loop``,
``sampling``, paths.
The transformer may be trained for more epochs: what is a share of all steps, such as the warmup and
the fall of the learning rate, then follows the new total from there on. All else is held fixed, for
the reasons in ``_REASONS``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from var_tokenizer.common import InputError, is_integer, quoted

_EPOCHS = "train_transformer.epochs"
_FREE = {"train_tokenizer.validation_images"}
_FREE |= {
    f"train_transformer.{name}"
    for name in (
        "accumulation",
        "recompute",
        "precision.loss_scale",  # the first one; a checkpoint holds that of its step
        "precision.growth_every",
        "validation_images",
        "samples_per_class",
    )
}
_REASONS = {  # by the name of a setting or of its group
    "seed": "the order of the images and all random numbers follow from it",
    "random_crops": "it decides what a step sees of an image",
    "init": "these are the weights that the training started from",
    "tokenizer": "the weights, or the tokens that they are trained on, are of that tokenizer",
    "transformer": "the weights have these shapes",
    "train_transformer.lora": "an adapter belongs to its weights, rank and targets",
    _EPOCHS: "the learning rate has followed a longer schedule; they may only grow",
    "train_tokenizer.epochs": "the adversary and the revival of codes follow a share of all steps",
    "train_tokenizer.batch": "it decides which images a step takes",
    "train_transformer.batch": "it decides which images a step takes (accumulation saves memory)",
    "train_transformer.precision.dtype": "16 bits round products far more coarsely than 32",
    "": "it changes what a step learns",
}


def check_settings(
    folder: Path, saved: object, settings: Mapping[str, Any], done: int, steps: int
) -> bool:
    """Whether a stage that goes on from a checkpoint is trained for more epochs than before.

    folder: the checkpoints of the stage. saved, settings: those of the newest one and of this
    run, as JSON. done, steps: finished steps, and all steps by ``settings``.

    Raises InputError that names the first setting which may not have changed, and says why.
    """
    grows = False
    for name, before, now in _differences(saved, settings):
        if name in _FREE:
            continue
        if before is _MISSING:
            if now in (None, False):
                continue  # before there was such a switch, it was off
            raise InputError(
                f"{quoted(folder)}: was trained by a version without the setting {name} = {now}, "
                "which changes the training; expected a run of this version (the earlier version "
                "can finish it, --no-resume starts from the beginning, another --out starts a new "
                "run)"
            )
        if name == _EPOCHS and is_integer(before) and is_integer(now) and before < now:
            _check_joined(folder, settings, done, steps)
            grows = True
            continue
        raise InputError(
            f"{quoted(folder)}: was trained with {name} = {before}, now it is {now}; expected the "
            f"same, since {_reason(name)} (--no-resume starts from the beginning, another --out "
            "starts a new run)"
        )
    return grows


_MISSING = object()


def _differences(
    saved: object, settings: object, name: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Name, old and new value of each setting that differs; ``_MISSING`` for one that is new."""
    if isinstance(saved, Mapping) and isinstance(settings, Mapping):
        for key in sorted({*saved, *settings}):
            inner = f"{name}.{key}".lstrip(".")
            yield from _differences(saved.get(key, _MISSING), settings.get(key), inner)
    elif saved != settings:
        yield name, saved, settings


def _reason(name: str) -> str:
    while name not in _REASONS:
        name = name.rpartition(".")[0]
    return _REASONS[name]


def _check_joined(folder: Path, settings: Mapping[str, Any], done: int, steps: int) -> None:
    """Raises InputError if scales that have joined would leave, for the new total of ``steps``."""
    share = settings["train_transformer"].get("progressive", 0)
    if done < share * steps:
        raise InputError(
            f"{quoted(folder)}: progressive is {share}, so that with more epochs scales join up to "
            f"step {share * steps:.0f}, and some that have joined by step {done} would leave; "
            "expected the old number of epochs"
        )
