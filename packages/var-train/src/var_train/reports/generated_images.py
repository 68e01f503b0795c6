"""How a run draws images with the transformer, at validations and at its end."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from var_tokenizer import Tokenizer
from var_tokenizer.common import check_integer
from var_transformer import Sampler, Transformer, generate

from var_train.reports.progress_bars import step_bar


@dataclass(frozen=True)
class SamplingConfig:
    """How a run draws images, at validations and after training."""

    per_class: int = 50
    """Images of each class, after training."""
    cfg: float = 0.0
    """Strength of classifier-free guidance at the last scale; it makes samples more typical of
    their class and less varied. 0 for none."""
    top_k: int = 0
    """Draw from the k likeliest tokens; 0 for all."""
    top_p: float = 0.0
    """Draw from the likeliest tokens that together reach this probability; 0 for all."""
    batch: int = 25
    """Images at once."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        for name in ("per_class", "batch"):
            check_integer(name, getattr(self, name), 1)
        self.sampler()  # raises it for the sampler's fields

    def sampler(self) -> Sampler:
        """What ``generate`` draws with."""
        return Sampler(cfg=self.cfg, top_k=self.top_k, top_p=self.top_p)


def sample_classes(
    model: Transformer, tokenizer: Tokenizer, sampling: SamplingConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, Y, X) in [0, 1] and labels (N,), ``per_class`` of each class in turn.

    Image n is drawn from the random stream (seed, n).
    """
    labels_n = np.repeat(np.arange(model.config.num_classes, dtype=np.int32), sampling.per_class)
    images = []
    with step_bar("sampling   ", len(labels_n), unit="images") as bar:
        for images_bcyx in draw_images(model, tokenizer, labels_n, sampling, seed):
            images.append(images_bcyx)
            bar.advance(len(images_bcyx), steps=len(images_bcyx))
    return np.concatenate(images), labels_n


def draw_images(
    model: Transformer,
    tokenizer: Tokenizer,
    labels_n: np.ndarray,
    sampling: SamplingConfig,
    seed: int,
) -> Iterator[np.ndarray]:
    """Yields the images (b, 3, Y, X) in [0, 1] of ``labels_n``, a batch at a time.

    Image n is drawn from the random stream (seed, n), whatever the batch.
    """
    batch = min(sampling.batch, len(labels_n))
    for begin in range(0, len(labels_n), batch):
        numbers = np.arange(len(labels_n))[begin : begin + batch]
        padded = np.resize(numbers, batch)  # batches of one size compile once
        out = generate(
            model,
            tokenizer,
            labels_n[padded],
            sampler=sampling.sampler(),
            seed=seed,
            numbers=padded.tolist(),
        )
        yield out.images[: len(numbers)]
