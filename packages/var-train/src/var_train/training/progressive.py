"""Progressive training: the scales join one after another, coarse to fine.

share: of the steps, in [0, 1], during which scales join. start: the scales of the first step.
"""

import math

_RISE = 1 / 300  # of the steps, as published: epochs / 300 epochs
_LEAST = 0.01


def scales_in_training(step: int, steps: int, scales: int, share: float, start: int) -> int:
    """How many of all ``scales`` scales step ``step`` (0-based) of ``steps`` trains."""
    joining = share * steps
    if step >= joining:
        return scales
    return start + int((scales - start) * step / joining)


def newest_weight(step: int, steps: int, scales: int, share: float, start: int) -> float:
    """What the loss of the newest scale is multiplied by: it rises to 1 after the scale joined.

    It is 1 for the scales of the first step, whose learning rate rises instead.
    """
    trained = scales_in_training(step, steps, scales, share, start)
    if trained == start or not share:
        return 1.0
    joined = math.ceil((trained - start) * share * steps / (scales - start))  # at this step
    return min(1.0, max(_LEAST, (step - joined + 1) / (_RISE * steps)))
