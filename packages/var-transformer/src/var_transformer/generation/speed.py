"""The points of ``Sampler.speed``: what each leaves out, and nothing else does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeedPoint:
    """unguided: how many of the last scales have no guidance. pruned: as ``Sampler.pruned``."""

    unguided: int = 0
    pruned: tuple[float, ...] = ()


# ``benchmarks/faster_sampling.py`` measures them: docs/speed.md has what each saves and costs
SPEEDS = (
    SpeedPoint(),
    SpeedPoint(unguided=1),
    SpeedPoint(unguided=2),
    SpeedPoint(unguided=2, pruned=(0.25,)),
    SpeedPoint(unguided=2, pruned=(0.5,)),
    SpeedPoint(unguided=2, pruned=(0.5, 0.5)),
)
