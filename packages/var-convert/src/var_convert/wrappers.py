"""The models in a file, whatever a trainer wrapped them in: state dicts, prefixes of names."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from var_tokenizer.common import InputError, quoted

from var_convert.formats.weights import Entry, Weights
from var_convert.kinds import kind_of_names, noted_kind, refuse_relatives
from var_convert.published_names import ROOTS

log = logging.getLogger(__name__)

# What PyTorch puts into names, at any place: DataParallel, compile, FSDP, activation checkpointing.
_INSIDE = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Optimizers' moments, which MindSpore saves under the names of the weights.
_MOMENTS = ("adam_m", "adam_v", "moment1", "moment2", "moments", "exp_avg", "exp_avg_sq", "accum")
# Single numbers that trainers and averaging keep beside the weights.
_COUNTERS = (
    *("n_averaged", "num_updates", "decay", "initted", "step", "global_step", "epoch", "epoch_num"),
    *("step_num", "beta1_power", "beta2_power", "learning_rate", "scale_sense", "loss_scale"),
)


@dataclass(frozen=True)
class WrappedModel:
    """One model of a file.

    key: where it is in the file; empty if it is all that there is. names: VAR's name of each
    tensor -> its name in the file. taken_off: what preceded VAR's names; left_out: tensors of the
    file that are no weights.
    """

    kind: str
    key: str
    file: Weights
    names: Mapping[str, str]
    taken_off: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def weights(self) -> Weights:
        """The model's tensors under VAR's names."""
        tensors = {name: self.file.tensors[held] for name, held in self.names.items()}
        file = self.file
        return Weights(file.source, tensors, file.metadata, file.key, file.config)

    def stored(self) -> dict[str, Entry]:
        """The model's tensors under the file's names."""
        return {held: self.file.tensors[held] for held in self.names.values()}

    def tell(self) -> None:
        """Logs what was taken off the names, and what was left out."""
        if self.taken_off:
            log.info("%s: took %s off the names", self.file.source, quoted(self.taken_off))
        if self.left_out:
            log.info("%s: left out %s", self.file.source, _listed(self.left_out))


def choose_model(
    shown: str, held: Sequence[Weights], only: str | None, key: str | None
) -> tuple[WrappedModel, list[WrappedModel]]:
    """The model that ``only`` (a kind) and ``key`` name, and all models of the file.

    shown: how messages name the file. Raises InputError if no model of VAR is there, none is
    the named one, or several are.
    """
    models = [model for weights in held for model in _models_in(weights)]
    if not models:
        _refuse(max(held, key=lambda weights: len(weights.tensors)))
    wanted = [
        model
        for model in models
        if only in (None, model.kind) and (key is None or _is_named(model, key))
    ]
    if len(wanted) == 1:
        return wanted[0], models
    if not wanted and key is None:
        there = ", ".join(dict.fromkeys(model.kind for model in models))
        raise InputError(f"{shown}: holds a {there}; expected a {only}")
    there = ", ".join(
        f"{quoted(m.key)} ({m.kind})" if m.key else f"one without a key ({m.kind}; --key '')"
        for m in models
    )
    if not wanted:
        raise InputError(f"{shown}: nothing under the key {quoted(key or '')!r}; it holds {there}")
    kinds = [model.kind for model in wanted]
    if len(set(kinds)) == len(kinds):
        raise InputError(
            f"{shown}: holds {' and '.join(kinds)}; choose with --only {' or --only '.join(kinds)}"
        )
    raise InputError(f"{shown}: holds several models: {there}; choose one with --key")


def _is_named(model: WrappedModel, key: str) -> bool:
    return model.key == key or model.key.endswith(f".{key}")


def _refuse(weights: Weights) -> None:
    refuse_relatives(weights.source, weights.tensors)
    raise InputError(
        f"{weights.source}: not weights of VAR: it holds {_listed(weights.tensors) or 'no tensors'}"
        "; expected the published names, e.g. encoder.conv_in.weight or word_embed.weight"
    )


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    first = ", ".join(quoted(name) for name in list(names)[:3])
    return first if len(names) <= 3 else f"{first}, ..."


def _models_in(weights: Weights) -> Iterator[WrappedModel]:
    """The models of a state dict: the tensors whose names share what precedes VAR's."""
    groups: dict[str, dict[str, str]] = {}
    rest: list[str] = []
    left_out: list[str] = []
    for held in weights.tensors:
        prefix, name = _split(held)
        if prefix is None:
            (left_out if held in _COUNTERS else rest).append(held)
        elif any(part in _MOMENTS for part in prefix.split(".")):
            left_out.append(held)
        else:
            names = groups.setdefault(prefix, {})
            if name in names:
                raise InputError(
                    f"{weights.source}: tensor {quoted(held)} is there under two names"
                )
            names[name] = held
    models = {prefix: names for prefix, names in groups.items() if kind_of_names(names)}
    for prefix, names in groups.items():
        if prefix not in models:
            rest += names.values()
    native = noted_kind(weights)
    if native and not models:
        models, rest = {"": {name: name for name in weights.tensors}}, []
    if models and not native:
        refuse_relatives(weights.source, weights.tensors)
    for prefix, names in models.items():
        twice = next((held for held in rest if held in names), None)
        if twice is not None:
            raise InputError(f"{weights.source}: tensor {quoted(twice)} is there under two names")
        everything = names | {held: held for held in rest}  # which is refused, by name
        kind = native or kind_of_names(names)
        assert kind is not None
        key = weights.key
        if len(models) > 1:
            key = ".".join(part for part in (key, prefix.rstrip(".")) if part)
        yield WrappedModel(kind, key, weights, everything, _off(names), tuple(left_out))


def _split(held: str) -> tuple[str | None, str]:
    """What precedes VAR's part of a name (None if it has none), and that part."""
    parts = held.split(".")
    begin = next((i for i, part in enumerate(parts) if part in ROOTS), None)
    if begin is None:
        return None, held
    own = [part for part in parts[begin:] if part not in _INSIDE]
    return "".join(f"{part}." for part in parts[:begin]), ".".join(own)


def _off(names: Mapping[str, str]) -> str:
    """What the first changed name of a model lost."""
    for name, held in names.items():
        if name != held:
            return held.removesuffix(name) if held.endswith(name) else f"{held} -> {name}"
    return ""
