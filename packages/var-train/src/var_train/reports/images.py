"""The images that a run draws with the transformer, and sheets of labelled ones to look at."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from var_tokenizer import Tokenizer
from var_tokenizer.common import (
    InputError,
    check_integer,
    fewer_images,
    needing_memory,
    quoted,
    save_png,
    to_model_range,
    to_pixels,
    to_unit_range,
)
from var_transformer import Sampler, Transformer, fitting_batch, generate

from var_train.data.batches import padded_batches
from var_train.data.image_sources import ImageSource
from var_train.reports.progress_bars import step_bar

CELL = 64  # pixels of the shorter side of a cell, at least
GUTTER = 4
MARGIN = 12
INK = (40, 40, 40)

_LARGEST_BATCH = 25
_ROWS, _COLUMNS = 20, 10  # of samples.png, at most
_GRID_ROWS = 8  # of a validation's grid, at most


@dataclass(frozen=True)
class SamplingConfig:
    """How a run draws images, at validations and after training."""

    per_class: int = 50
    """Images of each class, after training. samples.png shows up to 10 of them, for up to 20
    classes; others are drawn only of the digits, which are judged."""
    cfg: float = 0.0
    """Strength of classifier-free guidance at the last scale; it makes samples more typical of
    their class and less varied. 0 for none."""
    top_k: int = 0
    """Draw from the k likeliest tokens; 0 for all."""
    top_p: float = 0.0
    """Draw from the likeliest tokens that together reach this probability; 0 for all."""
    batch: int = 0
    """Images at once; 0 chooses what fits into free memory, at most 25."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        check_integer("per_class", self.per_class, 1)
        check_integer("batch", self.batch, 0)
        self.sampler()  # raises it for the sampler's fields

    def sampler(self) -> Sampler:
        """What ``generate`` draws with."""
        return Sampler(cfg=self.cfg, top_k=self.top_k, top_p=self.top_p)


def draw_images(
    model: Transformer,
    tokenizer: Tokenizer,
    labels_n: np.ndarray,
    sampling: SamplingConfig,
    seed: int,
    numbers_n: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yields the images (b, 3, Y, X) in [0, 1] of ``labels_n``, a batch at a time.

    Image n is drawn from the random stream (seed, numbers_n[n]), by default (seed, n), whatever
    the batch. Raises InputError if memory does not suffice for a batch.
    """
    sampler = sampling.sampler()
    numbers_n = np.arange(len(labels_n)) if numbers_n is None else numbers_n
    batch = sampling.batch or fitting_batch(model, tokenizer, sampler, _LARGEST_BATCH)
    batch = min(batch, len(labels_n))
    for begin in range(0, len(labels_n), batch):
        places = np.arange(len(labels_n))[begin : begin + batch]
        padded = np.resize(places, batch)  # batches of one size compile once
        with needing_memory(
            f"drawing {batch} images at once", fewer_images("--sampling.batch", batch)
        ):
            out = generate(
                model,
                tokenizer,
                labels_n[padded],
                sampler=sampler,
                seed=seed,
                numbers=numbers_n[padded].tolist(),
            )
        yield out.images[: len(places)]


def draw_grid(
    model: Transformer, tokenizer: Tokenizer, columns: int, sampling: SamplingConfig, seed: int
) -> np.ndarray:
    """uint8 (Y, X, 3): generated images, a row for each of up to 8 classes.

    Image n of the grid is drawn from the random stream (seed, n).
    """
    rows = _evenly(model.config.num_classes, _GRID_ROWS)
    batches = draw_images(model, tokenizer, np.repeat(rows, columns), sampling, seed)
    pixels_nyxc = np.concatenate([to_pixels(images_bcyx) for images_bcyx in batches])
    return sample_grid(pixels_nyxc, [str(label) for label in rows], columns)


def _evenly(count: int, most: int) -> np.ndarray:
    """Up to ``most`` of ``count`` classes, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def sample_grid(pixels_nyxc: np.ndarray, row_labels: Sequence[str], columns: int) -> np.ndarray:
    """uint8 (Y, X, 3): a grid with one labelled row per class.

    pixels_nyxc: uint8 (N, Y, X, 3), row after row; N = rows * ``columns``. row_labels: one text
    per row. Raises InputError if the numbers do not agree.
    """
    rows = len(row_labels)
    if rows < 1 or columns < 1 or len(pixels_nyxc) != rows * columns:
        raise InputError(
            f"{len(pixels_nyxc)} images for {rows} row labels and {columns} columns; "
            "expected rows * columns images, at least one"
        )
    return _sheet(pixels_nyxc.reshape(rows, columns, *pixels_nyxc.shape[1:]), row_labels)


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
    rows = (originals_ncyx, progressive[-1], *progressive)
    return _sheet(np.stack([to_pixels(images_ncyx) for images_ncyx in rows]), captions)


def save_reconstructions(
    tokenizer: Tokenizer, images: ImageSource, path: Path, batch: int, columns: int = 8
) -> None:
    """Writes a sheet of held-out images, their reconstructions, and the image after each scale.

    batch: images at once; use the batch of the rest of the run to save a compilation.
    """
    indices = np.linspace(0, len(images) - 1, columns).astype(int)
    parts = []
    for places in padded_batches(columns, batch):
        originals = to_model_range(images.batch(indices[places])[0])
        decoded = tokenizer.decode_progressive(tokenizer.encode(originals))
        parts.append([to_unit_range(np.asarray(x)) for x in (originals, *decoded)])
    rows = [np.concatenate(of_row)[:columns] for of_row in zip(*parts, strict=True)]
    captions = ["original", "reconstruction"]
    captions += [f"after {y}x{x}" for y, x in tokenizer.schedule.sizes]
    save_png(reconstruction_sheet(rows[0], rows[1:], captions), path)


def save_samples(
    model: Transformer,
    tokenizer: Tokenizer,
    classes: Sequence[str],
    sampling: SamplingConfig,
    seed: int,
    path: Path,
    drawn: Callable[[np.ndarray, int], None] | None = None,
) -> None:
    """Writes a labelled grid: up to 10 generated images of each of up to 20 classes, evenly spaced.

    classes: names. Image n of class c is drawn from the random stream (seed, c * per_class + n).
    drawn: called for each class with its images (per_class, 3, Y, X) in [0, 1] and its number; if
    it is given, all images of all classes are drawn.
    """
    rows = _evenly(len(classes), _ROWS)
    columns = min(_COLUMNS, sampling.per_class)
    labels = rows if drawn is None else np.arange(len(classes))
    count = columns if drawn is None else sampling.per_class
    numbers_n = (labels[:, None] * sampling.per_class + np.arange(count)).reshape(-1)
    labels_n = np.repeat(labels.astype(np.int32), count)
    pixels = []
    with step_bar("sampling   ", len(labels_n), unit="images") as bar:

        def batches() -> Iterator[np.ndarray]:
            for images_bcyx in draw_images(model, tokenizer, labels_n, sampling, seed, numbers_n):
                yield images_bcyx
                bar.advance(len(images_bcyx), steps=len(images_bcyx))

        for label, images_ncyx in zip(labels.tolist(), _in_groups(batches(), count), strict=True):
            if label in rows:
                pixels.append(to_pixels(images_ncyx[:columns]))
            if drawn is not None:
                drawn(images_ncyx, label)
    save_png(sample_grid(np.concatenate(pixels), [classes[c] for c in rows], columns), path)


def _in_groups(batches: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yields the same images, ``count`` at a time."""
    rest = next(batches)
    while True:
        while len(rest) >= count:
            yield rest[:count]
            rest = rest[count:]
        batch = next(batches, None)
        if batch is None:
            return
        rest = np.concatenate([rest, batch])


def _sheet(pixels_rnyxc: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """R rows of N uint8 images on white, a caption left of each row."""
    rows, columns, height, width, _ = pixels_rnyxc.shape
    zoom = math.ceil(CELL / min(height, width))  # whole, so that every pixel stays a square
    cell_y, cell_x = height * zoom, width * zoom

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
            cell_yxc = pixels_rnyxc[row, column].repeat(zoom, axis=0).repeat(zoom, axis=1)
            sheet.paste(Image.fromarray(cell_yxc), (left + column * step_x, y))
    return np.asarray(sheet)
