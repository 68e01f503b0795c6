"""Which objective a training has, and its settings."""

from dataclasses import dataclass
from typing import Literal

from var_tokenizer.common import check_number

Objective = Literal["likelihood", "cca", "gft"]


@dataclass(frozen=True)
class ContrastConfig:
    """Condition contrastive alignment (arXiv:2410.09347), the objective cca."""

    beta: float = 0.02
    """What log-likelihoods of images, relative to those of --init, are multiplied by."""
    negative_weight: float = 1e4
    """Weight of images with classes that are not theirs (lambda)."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        check_number("beta", self.beta, above=0)
        check_number("negative_weight", self.negative_weight, least=0)


@dataclass(frozen=True)
class GuidanceFreeConfig:
    """Guidance-free training (arXiv:2501.15420), the objective gft."""

    cfg: float = 1.5
    """The guidance that is learned: its strength at the last scale, growing from 0 at the first."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        check_number("cfg", self.cfg, above=0)
