"""What a run has to show for itself: pictures and the figures of ``report.json``."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from var_tokenizer import Tokenizer
from var_tokenizer.common import check_integer, replacing, to_unit_range
from var_transformer import Transformer, check_sampler, generate

from var_train.data.image_sources import ImageSet, ImageSource
from var_train.reports.digit_metrics import DigitJudge, distinct, nearest_train_distance
from var_train.reports.image_sheets import reconstruction_sheet, sample_grid, save_png
from var_train.reports.metrics_log import step_bar


@dataclass(frozen=True)
class SamplingConfig:
    """How a run draws images, at validations and when it has trained."""

    per_class: int = 50
    """Images a class, when it has trained."""
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
        check_sampler(self.cfg, self.top_k, self.top_p)


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
            cfg=sampling.cfg,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=seed,
            numbers=padded.tolist(),
        )
        yield out.images[: len(numbers)]


def save_reconstructions(
    tokenizer: Tokenizer, images: ImageSource, path: Path, batch: int, columns: int = 8
) -> None:
    """A sheet of held-out images, their reconstructions, and the image after each scale.

    batch: images at once, as elsewhere in the run, so that nothing compiles for the sheet.
    """
    indices = np.linspace(0, len(images) - 1, min(columns, batch)).astype(int)
    originals, _ = images.batch(np.resize(indices, batch))
    decoded = tokenizer.decode_progressive(tokenizer.encode(originals))
    originals = originals[: len(indices)]
    progressive = [np.asarray(x)[: len(indices)] for x in decoded]
    captions = ["original", "reconstruction"]
    captions += [f"after {rows}x{cols}" for rows, cols in tokenizer.schedule.sizes]
    as_unit = [to_unit_range(x) for x in (originals, *progressive)]
    save_png(reconstruction_sheet(as_unit[0], as_unit[1:], captions), path)


def save_samples(
    images_ncyx: np.ndarray, per_class: int, classes: tuple[str, ...], path: Path, columns: int = 10
) -> None:
    """A labelled grid, one row a class."""
    shown = min(columns, per_class)
    by_class = images_ncyx.reshape(len(classes), per_class, *images_ncyx.shape[1:])[:, :shown]
    save_png(sample_grid(by_class.reshape(-1, *images_ncyx.shape[1:]), classes, shown), path)


def tokenizer_figures(
    ids: list[np.ndarray], reconstructions: np.ndarray, images: ImageSource, vocab_size: int
) -> dict[str, object]:
    """Codebook usage (total and of each scale) and PSNR in dB on held-out images."""
    originals, _ = images.batch(np.arange(len(images)))
    error = ((reconstructions - originals) / 2) ** 2
    return {
        "codebook_usage": len(np.unique(np.concatenate([i.ravel() for i in ids]))) / vocab_size,
        "scale_codes_used": [len(np.unique(i)) for i in ids],
        "reconstruction_psnr": float((-10 * np.log10(error.mean((1, 2, 3)) + 1e-12)).mean()),
    }


def digit_figures(
    generated: np.ndarray,
    labels_n: np.ndarray,
    reconstructions: np.ndarray,
    train: ImageSet,
    val: ImageSet,
) -> dict[str, object]:
    """How real the digits are to a judge that saw nothing but real training digits."""
    judge = DigitJudge(train)
    real_val = val.images_nyxc.transpose(0, 3, 1, 2)
    return {
        "judge_accuracy": judge.accuracy(real_val, val.labels_n),
        "reconstruction_accuracy": judge.accuracy(to_unit_range(reconstructions), val.labels_n),
        "generated_accuracy": judge.accuracy(generated, labels_n),
        "distinct": distinct(generated, labels_n, train),
        "nearest_train_distance": nearest_train_distance(generated, train, val),
    }


def write_report(path: Path, figures: dict[str, object]) -> None:
    """Writes ``figures`` as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
