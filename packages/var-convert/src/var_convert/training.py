"""A training that changes framework: our checkpoints <-> a PyTorch trainer's file.

The file is a mapping that ``torch.save`` wrote:

    model       state dict under the published names, for ``load_state_dict(strict=True)``
    ema         the averaged weights likewise, if the training keeps any
    optimizer   ``AdamW.state_dict()``: exp_avg, exp_avg_sq and step of each parameter, in the order
                of the model's parameters; a group without weight decay, and one with it
    step        finished steps

Read are also ``state_dict`` and ``optimizer_state_dict``, the released trainer's
``{"trainer": {"var_wo_ddp": ..., "var_opt": {"optimizer": ...}}}``, and groups of any number.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from var_tokenizer import Scale
from var_tokenizer.common import (
    AVERAGES,
    FIRST,
    SECOND,
    InputError,
    Snapshot,
    check_tensors,
    quoted,
    read_snapshot,
    remove_leftovers,
    replacing,
    snapshot_folder,
    snapshot_name,
    snapshots_in,
    write_snapshot,
)

from var_convert.adamw import AdamWState, adamw_state_dict, count, read_adamw
from var_convert.formats.names import format_of_name
from var_convert.formats.pth import import_torch, load_pth, state_dict
from var_convert.formats.weights import Weights, entry_of
from var_convert.opened_model import OpenedModel, checked_model, open_model

KIND = "transformer"  # the tokenizer's stage has a discriminator and its own moments besides
_MODELS = ("model", "state_dict", "model_state_dict", "var_wo_ddp")
_AVERAGES = ("ema", "model_ema", "ema_state_dict")
_OPTIMIZERS = ("optimizer", "optimizer_state_dict", "var_opt")
_STEPS = ("step", "global_step")


@dataclass(frozen=True)
class TrainingConversion:
    """What was written. step: finished steps. averaged: whether averaged weights are among it."""

    target: Path
    step: int
    parameters: int
    averaged: bool


def convert_training(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    scales: Sequence[Scale] | None = None,
    heads: int | None = None,
    force: bool = False,
) -> TrainingConversion:
    """Writes a checkpoint of var-train as a PyTorch trainer's file, or such a file as a checkpoint.

    source: a checkpoint of the stage transformer, and target a name in .pth or .pt; or source a
    trainer's file, and target the folder of a run without checkpoints of a transformer, where
    ``python -m var_train.run --stage transformer --out TARGET`` goes on. scales, heads: as of
    ``convert``. force: replace a .pth that exists.

    Raises InputError for anything unusable, and then leaves the target as it was.
    """
    source, target = Path(source), Path(target)
    if format_of_name(target) == "PyTorch":
        if target.exists() and not force:
            raise InputError(f"{quoted(target)}: exists; give --force to replace it")
        return _to_pytorch(source, target)
    inside = target.parts[-2:] == ("checkpoints", KIND)
    if inside or target.is_file() or target.suffix in (".ckpt", ".safetensors"):
        raise InputError(f"{quoted(target)}: expected a .pth, or the folder of a run, its --out")
    folder = snapshot_folder(target, KIND)
    if there := snapshots_in(folder):
        raise InputError(
            f"{quoted(folder)}: holds {len(there)} checkpoint(s); expected none, or the run would "
            "go on with the newest of all"
        )
    return _from_pytorch(source, folder, scales, heads)


# ------------------------------------------------------------ to PyTorch
def _to_pytorch(source: Path, target: Path) -> TrainingConversion:
    torch, shown = import_torch(target), quoted(source)
    if not source.is_file():
        raise InputError(f"{shown}: no such file; expected a checkpoint of a training")
    snapshot = read_snapshot(source)
    if snapshot.model.get("kind") != KIND:
        raise InputError(
            f"{shown}: a checkpoint of a {quoted(snapshot.model.get('kind', 'model of no kind'))}; "
            f"expected one of a {KIND}"
        )
    content: dict[str, Any] = {"model": _model(torch, shown, snapshot, f"{KIND}/")}
    names = [name for name in content["model"] if f"{KIND}/{name}" in snapshot.arrays]
    if any(name.startswith(AVERAGES) for name in snapshot.arrays):
        content["ema"] = _model(torch, shown, snapshot, AVERAGES)
    adamw = _adamw(shown, snapshot, names)
    content |= {"optimizer": adamw_state_dict(torch, adamw, names), "step": snapshot.step}
    remove_leftovers(target.parent)
    try:
        with replacing(target) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # a full disk: PyTorch raises these
        reason = quoted((str(error).splitlines() or [type(error).__name__])[0])
        raise InputError(f"{quoted(target)}: cannot write: {reason}") from error
    return TrainingConversion(target, snapshot.step, len(names), "ema" in content)


def _model(torch: ModuleType, shown: str, snapshot: Snapshot, prefix: str) -> dict[str, Any]:
    """The weights under ``prefix``, checked, as a state dict in the order of the model."""
    entries = {name: entry_of(a, "F32") for name, a in _group(snapshot, prefix).items()}
    model = checked_model(Weights(shown, entries, snapshot.model), KIND)
    return state_dict(torch, model.published(), model.metadata)


def _group(snapshot: Snapshot, prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): np.asarray(array, np.float32)
        for name, array in snapshot.arrays.items()
        if name.startswith(prefix)
    }


def _adamw(shown: str, snapshot: Snapshot, names: Sequence[str]) -> AdamWState:
    """The optimizer of a checkpoint, which has the parameters ``names``."""
    first, second = _group(snapshot, FIRST), _group(snapshot, SECOND)
    shapes = {name: snapshot.arrays[f"{KIND}/{name}"].shape for name in names}
    for moments in (first, second):
        check_tensors(f"{shown}: moments", shapes, moments)
    try:
        found = snapshot.state["stage"]["optimizer"]
        if unknown := sorted({*map(str, found["undecayed"])} - {*names}):
            raise ValueError(f"no weight has the name {unknown[0]}")
        return AdamWState(
            first,
            second,
            updates=snapshot.step - int(found["skipped"]),
            undecayed=frozenset(map(str, found["undecayed"])),
            betas=(float(found["betas"][0]), float(found["betas"][1])),
            learning_rate=float(found["learning_rate"]),
            weight_decay=float(found["weight_decay"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{shown}: does not describe its optimizer ({quoted(repr(error))}); expected a "
            "checkpoint of this version"
        ) from error


# ------------------------------------------------------------ from PyTorch
def _from_pytorch(
    source: Path, folder: Path, scales: Sequence[Scale] | None, heads: int | None
) -> TrainingConversion:
    torch, shown = import_torch(source), quoted(source)
    loaded = load_pth(source)
    keys = _keys(loaded, _MODELS), _keys(loaded, _AVERAGES)
    model = open_model(source, KIND, scales, heads, key=keys[0])
    adamw = read_adamw(torch, shown, _optimizer_in(shown, loaded), model)
    step = next((count(torch, shown, loaded[key]) for key in _STEPS if key in loaded), None)
    step = adamw.updates if step is None else step
    if step < adamw.updates:
        raise InputError(
            f"{shown}: its step is {step} and that of its optimizer {adamw.updates}; expected no "
            "more updates than steps"
        )
    arrays = {f"{KIND}/{name}": array for name, array in _floats(model).items()}
    arrays |= {f"{FIRST}{name}": array for name, array in adamw.first.items()}
    arrays |= {f"{SECOND}{name}": array for name, array in adamw.second.items()}
    if keys[1] is not None:
        averages = open_model(source, KIND, scales, heads, key=keys[1])
        if averages.config != model.config:
            raise InputError(
                f"{shown}: {keys[1]} holds another architecture than {keys[0]}; expected the same"
            )
        arrays |= {f"{AVERAGES}{name}": array for name, array in _floats(averages).items()}
    state = {
        "settings": None,  # which a run takes for those of another framework
        "validation": {},
        "stage": {"optimizer": adamw.state(step), "loss_scale": None},
        "best_loss": None,
    }
    target = folder / snapshot_name(step)
    write_snapshot(target, Snapshot(step, arrays, state, model.metadata))
    return TrainingConversion(target, step, len(model.tensors), keys[1] is not None)


def _keys(loaded: Mapping, known: Sequence[str]) -> str | None:
    """Where the first of the ``known`` mappings is: at the top, or in ``trainer``."""
    trainer = loaded.get("trainer")
    for prefix, place in (("", loaded), ("trainer.", trainer)):
        for key in known:
            if isinstance(place, Mapping) and isinstance(place.get(key), Mapping):
                return f"{prefix}{key}"
    return None


def _optimizer_in(shown: str, loaded: Mapping) -> Mapping:
    key = _keys(loaded, _OPTIMIZERS)
    if key is None:
        held = ", ".join(quoted(name) for name in list(loaded)[:5] if isinstance(name, str))
        raise InputError(
            f"{shown}: holds {held or 'nothing'}, and no state of an optimizer; expected one "
            f"under {' or '.join(_OPTIMIZERS)} (for the weights alone: var-convert SRC DST)"
        )
    found = loaded
    for part in key.split("."):
        found = found[part]
    inner = found.get("optimizer")
    return inner if isinstance(inner, Mapping) else found


def _floats(model: OpenedModel) -> dict[str, np.ndarray]:
    return {name: entry.array() for name, entry in model.as_dtype("F32").tensors.items()}
