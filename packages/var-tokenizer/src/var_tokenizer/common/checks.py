"""Checks of numbers, flags, names and arrays that users give; all messages have one form."""

import math
from collections.abc import Iterable
from typing import TypeAlias, TypeGuard

import numpy as np
from mindspore import Tensor

from var_tokenizer.common.errors import InputError

Array: TypeAlias = np.ndarray | Tensor
_LOWEST = np.finfo(np.float32).min
_ROUNDING = 1e-3  # beyond [-1, 1]; an eighth of a step of 8-bit pixels


def is_integer(value: object) -> TypeGuard[int | np.integer]:
    """Whether it is an integer, Python's or NumPy's. True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_integer(field: str, value: object, least: int, most: int | None = None) -> int:
    """``value`` as Python's int.

    Raises InputError unless it is an integer, Python's or NumPy's, from ``least`` to ``most``.
    """
    if not is_integer(value) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{field} is {value!r}; expected an integer {bounds}")
    return int(value)


def check_number(
    field: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    finite: bool = True,
) -> None:
    """Raises InputError unless ``value`` is a number within the given bounds.

    NaN never is; infinity may be if ``finite`` is False.
    """
    fits = (
        (is_integer(value) or isinstance(value, float | np.floating))
        and value == value  # not NaN; math.isnan fails for integers beyond all floats
        and (not finite or -math.inf < value < math.inf)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not fits:
        bounds = {"of at least": least, "above": above, "at most": most, "below": below}
        given = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        if least is not None and most is not None:
            given = [f"from {least} to {most}"]
        expected = " ".join(["a number", " and ".join(given)]).strip()
        raise InputError(f"{field} is {value!r}; expected {expected}")


def check_flag(field: str, value: object) -> bool:
    """``value`` as Python's bool. Raises InputError unless it is one, Python's or NumPy's."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{field} is {value!r}; expected True or False")
    return bool(value)


def check_choice(field: str, value: object, choices: Iterable[str]) -> None:
    """Raises InputError unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{field} is {value!r}; expected one of {', '.join(choices)}")


def check_shape(field: str, shape: tuple[int, ...], expected: tuple[int | str, ...]) -> None:
    """Raises InputError unless ``shape`` is as expected; a letter stands for any size from 1."""
    fits = len(shape) == len(expected) and all(
        n >= 1 if isinstance(wanted, str) else n == wanted
        for n, wanted in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(n) for n in expected)
        raise InputError(f"{field} have shape {tuple(shape)}; expected ({wanted})")


def checked_floats(
    field: str, array: Array, least: float = -np.inf, most: float = np.inf, source: str = ""
) -> np.ndarray:
    """``array`` as float32.

    Raises InputError unless all values are finite floating-point numbers from ``least`` to
    ``most``. source: a function that gives such values, for the message.
    """
    span = "" if least == -np.inf else f"[{least:.2g}, {most:.2g}]"
    source = f", as {source} gives" if source else ""
    values = np.asarray(array)
    if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
        expected = f"floats in {span}" if span else "finite floats"
        raise InputError(f"{field} have dtype {values.dtype}; expected {expected}{source}")
    values = np.asarray(values, np.float32)
    lowest, highest = values.min(), values.max()  # NaN if any value is
    expected = f"{span or 'finite floats'}{source}"
    if np.isnan(lowest):
        raise InputError(f"{field} hold NaN; expected {expected}")
    if not (max(least, _LOWEST) <= lowest and highest <= min(most, -_LOWEST)):
        raise InputError(f"{field} lie in [{lowest:g}, {highest:g}]; expected {expected}")
    return values


def checked_images(field: str, images: Array) -> np.ndarray:
    """``images`` as float32. Raises InputError for values outside [-1, 1].

    Values that rounding took just outside are accepted unchanged.
    """
    return checked_floats(field, images, -1 - _ROUNDING, 1 + _ROUNDING, "var_tokenizer.read_images")


def checked_integers(field: str, array: Array, count: int) -> np.ndarray:
    """``array`` as int32. Raises InputError unless all values are integers from 0 to count - 1."""
    values = np.asarray(array)
    if values.dtype.kind not in "iu":
        raise InputError(
            f"{field} have dtype {values.dtype}; expected integers from 0 to {count - 1}"
        )
    least, most = values.min(), values.max()
    if least < 0 or most >= count:
        raise InputError(f"{field} lie in [{least}, {most}]; expected [0, {count - 1}]")
    return values.astype(np.int32)
