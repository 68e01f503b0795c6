"""AdamW's moments by the names of the parameters, out of and into PyTorch's ``state_dict()``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from var_tokenizer.common import InputError, check_tensors, quoted

from var_convert.formats.pth import tensor_entry
from var_convert.formats.weights import Entry
from var_convert.opened_model import OpenedModel


@dataclass(frozen=True)
class AdamWState:
    """first, second: moments by published name. updates: how many steps changed the weights.

    undecayed: the parameters without weight decay. betas, learning_rate, weight_decay: those of the
    last step.
    """

    first: Mapping[str, np.ndarray]
    second: Mapping[str, np.ndarray]
    updates: int
    undecayed: frozenset[str]
    betas: tuple[float, float]
    learning_rate: float
    weight_decay: float

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after ``step`` steps holds of it besides the moments."""
        return {
            "skipped": step - self.updates,
            "betas": list(self.betas),
            "undecayed": sorted(self.undecayed),
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
        }


def adamw_state_dict(torch: ModuleType, adamw: AdamWState, names: Sequence[str]) -> dict[str, Any]:
    """``AdamW.state_dict()`` of the parameters ``names``: those without decay, then the others."""
    chosen = {
        0.0: [name for name in names if name in adamw.undecayed],
        1.0: [name for name in names if name not in adamw.undecayed],
    }
    groups = [
        {
            "params": [torch.empty(adamw.first[n].shape, device="meta") for n in members],
            "lr": adamw.learning_rate,
            "betas": adamw.betas,
            "weight_decay": decays * adamw.weight_decay,
            # by these the released trainer sets rate and decay of a group at each step
            **{"lr_sc": 1.0, "wd_sc": decays},
        }
        for decays, members in chosen.items()
        if members
    ]
    optimizer = torch.optim.AdamW(groups, eps=1e-8)
    for group, members in zip(optimizer.param_groups, filter(None, chosen.values()), strict=True):
        group["param_names"] = members
        for name, parameter in zip(members, group["params"], strict=True):
            optimizer.state[parameter] = {
                "step": torch.tensor(float(adamw.updates)),
                "exp_avg": torch.from_numpy(adamw.first[name]),
                "exp_avg_sq": torch.from_numpy(adamw.second[name]),
            }
    return optimizer.state_dict()


@dataclass(frozen=True)
class _Slot:
    """What AdamW keeps of one parameter."""

    first: Entry
    second: Entry
    updates: int
    group: Mapping


def read_adamw(torch: ModuleType, shown: str, optimizer: Mapping, model: OpenedModel) -> AdamWState:
    """The state in ``AdamW.state_dict()`` of a model's parameters.

    Raises InputError unless it has moments of each parameter, after the same number of updates.
    """
    groups, state = optimizer.get("param_groups"), optimizer.get("state")
    if (
        not isinstance(groups, list)
        or not groups
        or not isinstance(state, Mapping)
        or not all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups)
    ):
        raise InputError(f"{shown}: its optimizer has no param_groups and state as PyTorch's AdamW")
    for group in groups:
        amsgrad = group.get("amsgrad", False)
        if amsgrad is not False:
            given = quoted(str(amsgrad))
            raise InputError(f"{shown}: amsgrad is {given} in its optimizer; expected False")
    # the file's order is that of its model's parameters
    names = {name: held for name, held in model.held.items() if name in model.tensors}
    number = sum(len(group["params"]) for group in groups)
    if number != len(names):
        raise InputError(
            f"{shown}: its optimizer has {number} parameters; expected {len(names)}, as the model"
        )
    slots = [[_slot(torch, shown, state, p, group) for p in group["params"]] for group in groups]
    shapes = {name: model.tensors[name].shape for name in names}
    matched = _by_name(shown, slots, names) or _by_shape(shown, slots, shapes)
    for moment in ("first", "second"):
        found = {name: getattr(slot, moment) for name, slot in matched.items()}
        check_tensors(f"{shown}: moments", shapes, found)
    updates = {slot.updates for slot in matched.values()}
    if len(updates) > 1:
        raise InputError(
            f"{shown}: its parameters went through {min(updates)} to {max(updates)} updates; "
            "expected the same number for each"
        )
    betas = groups[0].get("betas")
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise InputError(f"{shown}: betas is {quoted(str(betas))} in its optimizer; expected two")
    return AdamWState(
        {name: slot.first.as_dtype("F32").array() for name, slot in matched.items()},
        {name: slot.second.as_dtype("F32").array() for name, slot in matched.items()},
        updates.pop(),
        frozenset(n for n, slot in matched.items() if _decay(torch, shown, slot.group) == 0),
        (_number(torch, shown, betas[0]), _number(torch, shown, betas[1])),
        _number(torch, shown, groups[0].get("lr")),
        max(_decay(torch, shown, group) for group in groups),
    )


def _slot(torch: ModuleType, shown: str, state: Mapping, place: object, group: Mapping) -> _Slot:
    found = state.get(place) if isinstance(place, int | str) else None
    found = found if isinstance(found, Mapping) else {}
    moments = [found.get(name) for name in ("exp_avg", "exp_avg_sq")]
    if not all(isinstance(moment, torch.Tensor) for moment in moments):
        raise InputError(
            f"{shown}: its optimizer has no exp_avg and exp_avg_sq of parameter "
            f"{quoted(str(place))}; expected those of every parameter"
        )
    first, second = (tensor_entry(torch, shown, f"moment {place}", m) for m in moments)
    if not first.is_floating or not second.is_floating:
        raise InputError(f"{shown}: its optimizer has moments that are no floating-point numbers")
    return _Slot(first, second, count(torch, shown, found.get("step")), group)


def _decay(torch: ModuleType, shown: str, group: Mapping) -> float:
    return _number(torch, shown, group.get("weight_decay"))


def _number(torch: ModuleType, shown: str, value: object) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{shown}: has a {type(value).__name__} where a number is expected")
    return float(value)


def count(torch: ModuleType, shown: str, value: object) -> int:
    """A number of steps, which PyTorch keeps as a tensor. Raises InputError if it is none."""
    number = _number(torch, shown, value)
    if not 0 <= number < 2**53 or number % 1:
        raise InputError(f"{shown}: step is {number}; expected a number of steps")
    return int(number)


def _by_name(
    shown: str, slots: Sequence[Sequence[_Slot]], names: Mapping[str, str]
) -> dict[str, _Slot] | None:
    """The slot of each parameter, if the groups name theirs. names: with those in the file."""
    native = {name: name for name in names} | {held: name for name, held in names.items()}
    matched: dict[str, _Slot] = {}
    for members in filter(None, slots):
        given = members[0].group.get("param_names")
        if given is None:
            return None
        if not isinstance(given, list) or len(given) != len(members):
            raise InputError(f"{shown}: param_names of its optimizer are not one a parameter")
        for held, slot in zip(given, members, strict=True):
            name = native.get(held) if isinstance(held, str) else None
            if name is None or name in matched:
                raise InputError(
                    f"{shown}: its optimizer names a parameter {quoted(str(held))}; expected each "
                    "of the model once"
                )
            matched[name] = slot
    return matched


def _by_shape(
    shown: str, slots: Sequence[Sequence[_Slot]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, _Slot]:
    """The slot of each parameter, from the order of the parameters and the shapes of the moments.

    A group holds its parameters in the model's order. So a parameter is the next one of a group
    whose next moment has its shape; if two groups have such a one, nothing tells which it is.
    """
    rest = [list(reversed(members)) for members in slots]
    matched = {}
    for name, shape in shapes.items():
        fitting = [group for group in rest if group and group[-1].first.shape == shape]
        if len(fitting) != 1:
            raise InputError(
                f"{shown}: {len(fitting)} groups of its optimizer go on with a moment of "
                f"{tuple(shape)}, the shape of {name}; expected 1 (AdamW(model.named_parameters()) "
                "keeps the names)"
            )
        matched[name] = fitting[0].pop()
    return matched
