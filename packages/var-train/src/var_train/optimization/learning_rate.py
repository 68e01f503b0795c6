"""The learning-rate schedule: a linear warmup, then a fall of one of several shapes."""

import numpy as np

RATE_SCHEDULES = "cos, lin, lin0, lin00, lin0.1 to lin0.9 or exp"
"""The names, as messages list them."""

# The share of the steps after warmup that stays at the peak before the fall begins.
_PLATEAU = {"cos": 0.0, "lin": 0.15, "lin0": 0.05, "lin00": 0.0, "exp": 0.15}


def is_rate_schedule(name: str) -> bool:
    """Whether ``name`` is one of ``RATE_SCHEDULES``."""
    return name in _PLATEAU or _knee(name) is not None


def learning_rate(
    step: int,
    steps: int,
    *,
    peak: float,
    rate_schedule: str,
    warmup: float,
    warmup_start: float,
    final: float,
) -> float:
    """The learning rate of ``step`` (0-based) of ``steps``.

    rate_schedule: the shape of the fall, one of ``RATE_SCHEDULES``. warmup: the fraction of the
    steps that raise the rate to its peak. warmup_start, final: the rate of the first and of the
    last step, as fractions of the peak.
    """
    warm = round(warmup * steps)
    if step < warm:
        return peak * (warmup_start + (1 - warmup_start) * step / warm)
    progress = (step - warm) / max(1, steps - 1 - warm)
    return peak * float(_fraction_of_peak(rate_schedule, progress, final))


def _fraction_of_peak(rate_schedule: str, progress: float, final: float) -> float:
    """progress: in [0, 1], after warmup."""
    knee = _knee(rate_schedule)
    if knee is not None:
        middle = (1 + final + (1 - final) * (1 - knee)) / 2
        return float(np.interp(progress, (0, knee, 1), (1, middle, final)))
    plateau = _PLATEAU[rate_schedule]
    fall = max(0.0, (progress - plateau) / (1 - plateau))
    if rate_schedule == "exp":
        return final**fall
    if rate_schedule == "cos":
        fall = 0.5 * (1 - np.cos(np.pi * fall))
    return 1 - (1 - final) * fall


def _knee(name: str) -> float | None:
    """The X of ``linX``, where two straight parts meet; None for the other schedules."""
    try:
        knee = float(name.removeprefix("lin"))
    except ValueError:
        return None
    return knee if name.startswith("lin0.") and 0 < knee < 1 else None
