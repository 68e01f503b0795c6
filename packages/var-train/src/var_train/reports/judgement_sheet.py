"""The sheet of a judgement: samples above the reference images that are nearest to them."""

from pathlib import Path

import numpy as np
from PIL import Image
from var_tokenizer.common import fit_picture, save_png

from var_train.judging.measuring import kept_images
from var_train.judging.neighbours import Neighbours
from var_train.judging.sets import ImagesToJudge
from var_train.reports.images import sample_grid

_COLUMNS = 8
_LONGEST_SIDE = 256  # pixels of an image on the sheet


def save_sheet(
    path: Path,
    samples: ImagesToJudge,
    reference: ImagesToJudge | None,
    found: Neighbours | None,
    probability_n: np.ndarray | None,
) -> None:
    """Writes a row each of evenly spaced samples, the best and the worst, and of their nearest.

    The best have the highest probability of the class that was asked for, ``probability_n``, or
    without it the shortest way to a reference image. Without ``found`` there are no such rows, and
    without ``reference`` none of the nearest.
    """
    kept_n = kept_images(len(samples))  # which ``found`` counts
    columns = min(_COLUMNS, len(kept_n))
    rows = {"samples": np.linspace(0, len(kept_n) - 1, columns).round().astype(np.intp)}
    order_n = None
    if probability_n is not None:
        order_n = np.argsort(-probability_n[kept_n], kind="stable")
    elif found is not None:
        order_n = np.argsort(found.distance_n, kind="stable")
    if order_n is not None:
        rows |= {"best": order_n[:columns], "worst": order_n[::-1][:columns]}
    shown_n = np.concatenate(list(rows.values()))
    images = samples.chosen(kept_n[shown_n])
    size = _shown_size(images[0].shape[:2])
    captions = list(rows)
    pixels_rnyxc = _rows(images, size, columns)
    if reference is not None and found is not None:
        nearest = reference.chosen(kept_images(len(reference))[found.nearest_n[shown_n]])
        # each row of samples above that of their neighbours
        pixels_rnyxc = np.stack([pixels_rnyxc, _rows(nearest, size, columns)], axis=1)
        captions = [text for caption in rows for text in (caption, "nearest")]
    save_png(sample_grid(pixels_rnyxc.reshape(-1, *size, 3), captions, columns), path)


def _rows(images: list[np.ndarray], size: tuple[int, int], columns: int) -> np.ndarray:
    """(rows, ``columns``, Y, X, 3) uint8 of ``size`` (Y, X)."""
    fitted = [np.asarray(fit_picture(Image.fromarray(image_yxc), size)) for image_yxc in images]
    return np.stack(fitted).reshape(-1, columns, *size, 3)


def _shown_size(size: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = size
    shrink = max(1.0, max(size) / _LONGEST_SIDE)
    return max(1, round(rows / shrink)), max(1, round(columns / shrink))
