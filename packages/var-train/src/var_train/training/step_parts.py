"""What a transformer's step draws from the seed and its number, part by part."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from var_train.data.batches import step_indices
from var_train.data.crops import PlaceOf, draw_place
from var_train.parallel import workers
from var_train.training.transformer_gradients import draw_drop_path, draw_for

if TYPE_CHECKING:
    from var_train.training.transformer_settings import TransformerStageConfig

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
    mismatched_b: np.ndarray
    """Images drawn apart from these, for their classes."""
    weight: float
    """As in ``workers.Share``."""


def draw_part(
    config: "TransformerStageConfig",
    images: int,
    drop_rates_d: np.ndarray,
    seed: int,
    step: int,
    number: int,
) -> Part:
    """A part of this worker's share of the step's batch, which has as many as are accumulated.

    images: in the training data. An image's random numbers do not depend on the part that it is in.
    """
    batch = config.batch
    own, weight = workers.shares(batch, config.accumulation)[number]
    rng = np.random.default_rng((seed, _STEPS, step))
    unlabelled_b = draw_for(rng, batch, own) < config.condition_drop
    keep_d2b11 = draw_drop_path(rng, drop_rates_d, batch, own)
    flip_b = draw_for(rng, batch, own) < 0.5 if config.flip else None
    mismatched_b = (draw_for(rng, batch, own) * images).astype(int)
    indices_b = step_indices(images, batch, seed, step)[own]
    place_of = partial(draw_place, seed, step)
    drawn = indices_b, flip_b, place_of, unlabelled_b, keep_d2b11, mismatched_b
    return Part(*drawn, weight)
