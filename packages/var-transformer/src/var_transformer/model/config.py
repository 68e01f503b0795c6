"""The architecture of a transformer, and the published sizes."""

from dataclasses import dataclass, replace
from typing import Any

from var_tokenizer import SCALES_256, SCALES_512, Scale, ScaleSchedule
from var_tokenizer.common import InputError, check_choice, check_flag, check_integer

_PRESETS: dict[str, dict[str, Any]] = {
    "d16": {"depth": 16},
    "d20": {"depth": 20},
    "d24": {"depth": 24},
    "d30": {"depth": 30},
    "d36-s": {"depth": 36, "scales": SCALES_512, "shared_adaln": True},
}


@dataclass(frozen=True)
class TransformerConfig:
    """Architecture of the next-scale transformer; the defaults are the published VAR-d16.

    depth, width, heads: blocks, channels, attention heads; 0 for width or heads means the
        published rule: width = 64 * depth, heads = depth.
    num_classes: labels 0..num_classes-1; the label num_classes means "no class".
    vocab_size, latent_channels, scales: those of the tokenizer whose tokens it predicts.
    shared_adaln: one modulation layer for all blocks, each with a learned offset; else one each.
    qk_l2_norm: queries and keys are scaled to length 1, and scores by a learned scale per head.
    """

    depth: int = 16
    width: int = 0
    heads: int = 0
    num_classes: int = 1000
    vocab_size: int = 4096
    latent_channels: int = 32
    scales: tuple[Scale, ...] = SCALES_256
    shared_adaln: bool = False
    qk_l2_norm: bool = True

    def __post_init__(self) -> None:
        """Raises an InputError that names the field, its value and what is allowed."""
        object.__setattr__(self, "scales", self.schedule.scales)
        for field, least in (
            ("depth", 1),
            ("width", 0),
            ("heads", 0),
            ("num_classes", 1),
            ("vocab_size", 2),
            ("latent_channels", 1),
        ):
            object.__setattr__(self, field, check_integer(field, getattr(self, field), least))
        for field in ("shared_adaln", "qk_l2_norm"):
            object.__setattr__(self, field, check_flag(field, getattr(self, field)))
        object.__setattr__(self, "width", self.width or 64 * self.depth)
        object.__setattr__(self, "heads", self.heads or self.depth)
        if self.width % self.heads:
            raise InputError(f"heads is {self.heads}; expected a divisor of width {self.width}")

    @classmethod
    def preset(cls, name: str) -> "TransformerConfig":
        """A published size: d16, d20, d24, d30 (256 px) or d36-s (512 px, shared AdaLN)."""
        check_choice("preset", name, _PRESETS)
        return replace(cls(), width=0, heads=0, **_PRESETS[name])

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule(self.scales)

    @property
    def drop_path(self) -> float:
        """Drop-path rate of the last block in training, as published: 0.1 * depth / 24."""
        return 0.1 * self.depth / 24
