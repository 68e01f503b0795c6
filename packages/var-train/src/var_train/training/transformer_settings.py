"""The settings of the transformer's stage."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import get_args

from var_tokenizer.common import InputError, check_choice, check_integer, check_number
from var_transformer import LoraConfig, TransformerConfig

from var_train.data.batches import steps_of
from var_train.objectives.objective_config import ContrastConfig, GuidanceFreeConfig, Objective
from var_train.optimization.adamw import AdamWConfig
from var_train.optimization.loss_scale import PrecisionConfig
from var_train.parallel import workers
from var_train.training.device_limits import check_device


@dataclass(frozen=True)
class TransformerStageConfig:
    """How the transformer is trained."""

    epochs: int = 12
    """Passes over the training images."""
    batch: int = 64
    """Images per step, of all workers together."""
    accumulation: int = 1
    """Parts that a worker's share of the batch is computed in, one after another."""
    optimizer: AdamWConfig = field(default_factory=lambda: AdamWConfig(learning_rate=2e-3))
    objective: Objective = "likelihood"
    """What is learned: the likelihood of images, or to draw without guidance what it draws, by
    condition contrastive alignment (cca, from --init) or guidance-free training (gft)."""
    cca: ContrastConfig = field(default_factory=ContrastConfig)
    gft: GuidanceFreeConfig = field(default_factory=GuidanceFreeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    base_rate: float | None = None
    """Peak rate for a batch of 256. If given, the peak is BASE_RATE * batch / 256, and
    optimizer.learning_rate is not read."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    recompute: bool = False
    """Compute each block again in the backward pass, to save memory."""
    shard_optimizer: bool = False
    """Keep the moments of a weight on one worker only, to save memory."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all tokens."""
    condition_drop: float = 0.1
    """Share of labels replaced by "no class", which classifier-free guidance needs."""
    drop_path: float | None = None
    """Rate of the last block, growing linearly from 0 at the first; None for the published
    0.1 * depth / 24, or for 0 with the objective cca."""
    scale_weights: tuple[float, ...] = ()
    """Weight of each scale's tokens in the loss, relative to the others; () for equal weights."""
    progressive: float = 0.0
    """Share of the steps over which the scales join one after another, coarse to fine. Over the
    next 300th of the steps, the weight of a new one in the loss rises to its own."""
    progressive_start: int = 2
    """Scales at the first step, if they join one after another."""
    gate_gain: float = 1e-5
    """What the random weights of AdaLN's gates are multiplied by in a new model, so that each block
    starts close to the identity (alng in the published code)."""
    ema: float = 0.0
    """Decay of the averaged weights at each step. They are validated and saved; with 0, the last
    weights are."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    validation_images: int = 10_000
    """How many held-out images to measure, at most."""
    samples_per_class: int = 4
    """Columns of the grid of samples that each validation draws; 0 for none."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        for name, least in (
            ("epochs", 1),
            ("batch", 1),
            ("accumulation", 1),
            ("progressive_start", 2),
            ("validation_images", 1),
            ("samples_per_class", 0),
        ):
            check_integer(name, getattr(self, name), least)
        for name in ("label_smoothing", "condition_drop", "drop_path", "ema"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, least=0, below=1)
        if self.base_rate is not None:
            check_number("base_rate", self.base_rate, above=0)
        check_number("progressive", self.progressive, least=0, most=1)
        check_number("gate_gain", self.gate_gain, least=0)
        if self.scale_weights:
            self._check_scale_weights()
        self._check_objective()

    def _check_scale_weights(self) -> None:
        weights = self.scale_weights
        if not all(0 <= w < math.inf for w in weights) or not any(weights):
            raise InputError(
                f"scale_weights is {weights}; expected numbers of at least 0, not all 0"
            )
        first = weights[: self.progressive_start]
        if self.progressive and not any(first):
            raise InputError(
                f"scale_weights is {weights} and progressive_start {self.progressive_start}; "
                f"expected a weight above 0 among the first {len(first)}, which are trained alone "
                "at first"
            )

    def _check_objective(self) -> None:
        check_choice("objective", self.objective, get_args(Objective))
        for name, given in (("cca", self.cca), ("gft", self.gft)):
            for each in fields(given):
                value = getattr(given, each.name)
                if self.objective != name and value != each.default:
                    raise InputError(
                        f"{name}.{each.name} is {value} and objective {self.objective}; expected "
                        f"the objective {name}"
                    )
        if self.objective == "cca":  # which compares the likelihoods of whole images
            for name in ("label_smoothing", "drop_path", "progressive", "scale_weights"):
                if getattr(self, name):
                    raise InputError(
                        f"objective is cca and {name} {getattr(self, name)}; expected none of it"
                    )
        if self.objective == "gft" and not self.condition_drop:
            raise InputError(
                "objective is gft and condition_drop 0; expected above 0, since the unconditional "
                "half of guidance is trained, too"
            )

    def drop_rate(self, model: TransformerConfig) -> float:
        """That of drop path in the last block."""
        if self.drop_path is not None:
            return self.drop_path
        return 0.0 if self.objective == "cca" else model.drop_path

    @property
    def adamw(self) -> AdamWConfig:
        """``optimizer`` with the rate that ``base_rate`` gives it."""
        if self.base_rate is None:
            return self.optimizer
        return replace(self.optimizer, learning_rate=self.base_rate * self.batch / 256)

    def remedy(self, share: int) -> str:
        """What to change if memory does not suffice for ``share`` images at once."""
        options = []
        if share > 1:
            options.append(f"--train-transformer.accumulation above {self.accumulation}")
        if not self.recompute:
            options.append("--train-transformer.recompute")
        return " or ".join(options) or "more memory: one image at once is the least"

    def check(self, model: TransformerConfig, images: int) -> None:
        """Raises InputError if ``model``, the number of images or the device does not fit."""
        scales = len(model.schedule)
        steps_of(self.epochs, images, self.batch)
        if self.lora.rank:
            self.lora.check(model)
        if self.scale_weights and len(self.scale_weights) != scales:
            raise InputError(
                f"scale_weights has {len(self.scale_weights)} numbers; expected {scales}, "
                "one per scale"
            )
        if self.progressive and self.progressive_start > scales:
            raise InputError(
                f"progressive_start is {self.progressive_start}; expected at most {scales}"
            )
        workers.shares(self.batch, self.accumulation)
        check_device(self, model)
