"""The images that a run draws with the transformer, and sheets of labelled ones to look at."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from var_tokenizer import Tokenizer
from var_tokenizer.common import (
    InputError,
    check_integer,
    quoted,
    save_png,
    to_model_range,
    to_pixels,
    to_unit_range,
)
from var_transformer import Sampler, Transformer, generate

from var_train.data.image_sources import ImageSource
from var_train.reports.progress_bars import step_bar

CELL = 64  # pixels of the shorter side of a cell, at least
GUTTER = 4
MARGIN = 12
INK = (40, 40, 40)


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


def sample_grid(images_ncyx: np.ndarray, row_labels: Sequence[str], columns: int) -> np.ndarray:
    """uint8 (Y, X, 3): a grid with one labelled row per class.

    images_ncyx: (N, 3, Y, X) in [0, 1], row after row; N = rows * ``columns``. row_labels: one
    text per row. Raises InputError if the numbers do not agree.
    """
    rows = len(row_labels)
    if rows < 1 or columns < 1 or len(images_ncyx) != rows * columns:
        raise InputError(
            f"{len(images_ncyx)} images for {rows} row labels and {columns} columns; "
            "expected rows * columns images, at least one"
        )
    return _sheet(images_ncyx.reshape(rows, columns, *images_ncyx.shape[1:]), row_labels)


def reconstruction_sheet(
    originals_ncyx: np.ndarray, progressive: Sequence[np.ndarray], captions: Sequence[str]
) -> np.ndarray:
    """uint8 (Y, X, 3): originals, their reconstructions, and the image after every scale.

    originals_ncyx: (N, 3, Y, X) in [0, 1], one column each. progressive: K arrays like it, after
    1, 2, ... K scales; the last is the reconstruction. captions: K + 2 texts, one per row, such as
    "original", "reconstruction", "after 1x1", ... Raises InputError if the numbers do not agree.
    """
    if not progressive or len(captions) != len(progressive) + 2:
        raise InputError(
            f"{len(captions)} captions for {len(progressive)} scales; expected at least one scale "
            "and a caption for each, the originals and the reconstructions"
        )
    return _sheet(np.stack([originals_ncyx, progressive[-1], *progressive]), captions)


def save_reconstructions(
    tokenizer: Tokenizer, images: ImageSource, path: Path, batch: int, columns: int = 8
) -> None:
    """Writes a sheet of held-out images, their reconstructions, and the image after each scale.

    batch: images at once; use the batch of the rest of the run to save a compilation.
    """
    indices = np.linspace(0, len(images) - 1, min(columns, batch)).astype(int)
    originals = to_model_range(images.batch(np.resize(indices, batch))[0])
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
    """Writes a labelled grid with one row per class; images_ncyx: (N, 3, Y, X) in [0, 1]."""
    shown = min(columns, per_class)
    by_class = images_ncyx.reshape(len(classes), per_class, *images_ncyx.shape[1:])[:, :shown]
    save_png(sample_grid(by_class.reshape(-1, *images_ncyx.shape[1:]), classes, shown), path)


def _sheet(images_rncyx: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """R rows of N images in [0, 1] on white, a caption left of each row."""
    rows, columns, _, height, width = images_rncyx.shape
    zoom = math.ceil(CELL / min(height, width))  # whole, so that every pixel stays a square
    cell_y, cell_x = height * zoom, width * zoom
    pixels_nyxc = to_pixels(images_rncyx.reshape(-1, *images_rncyx.shape[2:]))
    pixels_nyxc = pixels_nyxc.repeat(zoom, axis=1).repeat(zoom, axis=2)

    captions = [quoted(caption) for caption in captions]  # some are names of folders
    font = ImageFont.load_default(min(28, cell_y // 4))
    caption_x = math.ceil(max(font.getlength(caption) for caption in captions))
    left, top = MARGIN + caption_x + MARGIN, MARGIN
    step_y, step_x = cell_y + GUTTER, cell_x + GUTTER
    sheet = Image.new(
        "RGB",
        (left + columns * step_x - GUTTER + MARGIN, top + rows * step_y - GUTTER + MARGIN),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for row, caption in enumerate(captions):
        y = top + row * step_y
        draw.text((left - MARGIN, y + cell_y / 2), caption, INK, font, anchor="rm")
        for column in range(columns):
            cell = Image.fromarray(pixels_nyxc[row * columns + column])
            sheet.paste(cell, (left + column * step_x, y))
    return np.asarray(sheet)
