"""What a transformer's step draws from the seed and its number, part by part."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from var_train.data.batches import step_indices
from var_train.data.crops import PlaceOf, draw_place
from var_train.parallel import workers
from var_train.training.transformer_gradients import draw_drop_path

if TYPE_CHECKING:
    from var_train.training.transformer_stage import TransformerStageConfig

_STEPS = 4  # random stream under the seed; the tokenizer's stage has 1 to 3


@dataclass(frozen=True)
class Part:
    """The random draws for the images that a worker computes at once: a part of its share."""

    indices_b: np.ndarray
    flip_b: np.ndarray | None
    place_of: PlaceOf
    unlabelled_b: np.ndarray
    keep_d2b11: np.ndarray
    """The result of ``draw_drop_path``."""
    weight: float
    """As in ``workers.Share``."""


def draw_parts(
    config: "TransformerStageConfig", images: int, drop_rates_d: np.ndarray, seed: int, step: int
) -> list[Part]:
    """This worker's share of the step's batch, in as many parts as are accumulated.

    images: in the training data. Random numbers are drawn for the whole batch.
    """
    batch = config.batch
    rng = np.random.default_rng((seed, _STEPS, step))
    indices_b = step_indices(images, batch, seed, step)
    unlabelled_b = rng.random(batch) < config.condition_drop
    keep_d2b11 = draw_drop_path(rng, drop_rates_d, batch)
    flip_b = rng.random(batch) < 0.5 if config.flip else None
    place_of = partial(draw_place, seed, step)
    parts = []
    for own, weight in workers.shares(batch, config.accumulation):
        flip = None if flip_b is None else flip_b[own]
        drawn = indices_b[own], flip, place_of, unlabelled_b[own], keep_d2b11[:, :, own]
        parts.append(Part(*drawn, weight))
    return parts
