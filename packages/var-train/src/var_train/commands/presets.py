"""The published recipes, by model: ``--preset d16``.

Where each number is from. [paper] is arXiv:2404.02905, section 4 and appendix; [release] is the
training command and the defaults that its authors published for each model, where the paper gives
a range or nothing:

- AdamW with betas 0.9 and 0.95, weight decay 0.05, rate 1e-4 for a batch of 256, 768 to 1024 images
  a step, 200 to 350 epochs, width 64 * depth, heads = depth, drop path 0.1 * depth / 24 [paper];
- batch and epochs of each model; a rate of 8e-5 from d24 on; a weight decay that ends at 0.08 for
  d30 and d36-s; the rate schedule lin0, its end, and a warmup over a fiftieth of the epochs, from
  0.005 of the peak; the gain of AdaLN's gates at the start, between 1e-3 and 5e-6; clipping at 2,
  condition drop 0.1, no label smoothing, no mirroring, all scales from the first step on, float16
  [release];
- images resized to 1.125 times their size and cropped at random; in validation, at the centre
  [release].

What differs from the release, on purpose:

- Epochs follow one another without a gap, so that every image counts: all steps are epochs * images
  / batch, rounded up. The release counts the batches of one epoch and multiplies.
- While scales join (``progressive``, which no preset uses), the weights of the tokens that are
  trained have the mean 1, so that a loss means the same with any number of scales. In the release
  the loss is smaller as long as scales are missing.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from var_train.optimization.adamw import AdamWConfig
from var_train.optimization.loss_scale import PrecisionConfig
from var_train.training.transformer_settings import TransformerStageConfig


@dataclass(frozen=True)
class _Recipe:
    """What differs between the sizes."""

    batch: int
    epochs: int
    base_rate: float
    final: float
    gate_gain: float
    weight_decay_end: float | None = None


Preset = Literal["d16", "d20", "d24", "d30", "d36-s"]

PRESETS: tuple[Preset, ...] = get_args(Preset)
"""The names, which ``TransformerConfig.preset`` accepts, too."""

_RECIPES: dict[Preset, _Recipe] = {
    "d16": _Recipe(768, 200, base_rate=1e-4, final=0.1, gate_gain=1e-3),
    "d20": _Recipe(768, 250, base_rate=1e-4, final=0.1, gate_gain=1e-3),
    "d24": _Recipe(768, 350, base_rate=8e-5, final=0.01, gate_gain=1e-4),
    "d30": _Recipe(1024, 350, base_rate=8e-5, final=0.01, gate_gain=1e-5, weight_decay_end=0.08),
    "d36-s": _Recipe(768, 350, base_rate=8e-5, final=0.01, gate_gain=5e-6, weight_decay_end=0.08),
}


def published_stage(name: Preset) -> TransformerStageConfig:
    """How the published transformer ``name`` was trained."""
    recipe = _RECIPES[name]
    return TransformerStageConfig(
        epochs=recipe.epochs,
        batch=recipe.batch,
        base_rate=recipe.base_rate,
        optimizer=AdamWConfig(
            betas=(0.9, 0.95),
            weight_decay=0.05,
            weight_decay_end=recipe.weight_decay_end,
            clip=2.0,
            rate_schedule="lin0",
            warmup=1 / 50,
            warmup_start=0.005,
            final=recipe.final,
        ),
        precision=PrecisionConfig("float16"),
        label_smoothing=0.0,
        condition_drop=0.1,
        drop_path=None,
        gate_gain=recipe.gate_gain,
        progressive=0.0,
        flip=False,
    )
