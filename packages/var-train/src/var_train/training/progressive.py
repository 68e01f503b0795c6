"""Progressive training: the scales join one after another, coarse to fine."""


def scales_in_training(step: int, steps: int, scales: int, share: float, start: int) -> int:
    """How many of all ``scales`` scales step ``step`` (0-based) of ``steps`` trains.

    share: of the steps, in [0, 1], during which scales join. start: the number at the first step.
    """
    joining = share * steps
    if step >= joining:
        return scales
    return start + int((scales - start) * step / joining)
