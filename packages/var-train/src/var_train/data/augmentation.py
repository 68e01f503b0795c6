"""Augmentation of what a discriminator sees (arXiv:2006.10738).

``Augmentation`` changes real and reconstructed images alike and lets the gradient pass, so that a
discriminator cannot memorize a small set of training images.
"""

import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import layout

from var_train.operators import means_over, three_parts


def draw_augmentation(
    rng: np.random.Generator, batch: int, image_size: tuple[int, int], own: slice = slice(None)
) -> tuple[Tensor, Tensor, Tensor]:
    """Random numbers for ``Augmentation``: drawn for all ``batch`` images, given for the B ``own``.

    Colours (3, B): brightness in [-0.5, 0.5], saturation in [0, 2], contrast in [0.5, 1.5].
    Pixels (B * Y * X,) int32: which pixel moves here, by a shift of up to an eighth of the side;
    B * Y * X if none does. Uncut (B, Y, X, 1): 0 in a box of half the side, else 1.
    """
    rows, columns = image_size
    colours_3b = rng.uniform([[-0.5], [0.0], [0.5]], [[0.5], [2.0], [1.5]], (3, batch))
    shifts = [rng.integers(-(n // 8), n // 8 + 1, (batch, 1))[own] for n in image_size]
    centres = [rng.integers(0, n + 1, (batch, 1))[own] for n in image_size]

    y_by, x_bx = np.arange(rows) + shifts[0], np.arange(columns) + shifts[1]
    inside_byx = _grid((y_by >= 0) & (y_by < rows), (x_bx >= 0) & (x_bx < columns))
    count = len(y_by)
    first_b11 = np.arange(count)[:, None, None] * (rows * columns)
    pixels_byx = first_b11 + y_by[:, :, None] * columns + x_bx[:, None]
    pixels_byx = np.where(inside_byx, pixels_byx, count * rows * columns)
    cut_byx = _grid(
        *(np.abs(np.arange(n) + 0.5 - c) < n / 4 for n, c in zip(image_size, centres, strict=True))
    )
    return (
        Tensor(colours_3b[:, own].astype(np.float32)),
        Tensor(pixels_byx.reshape(-1).astype(np.int32)),
        Tensor((~cut_byx)[..., None].astype(np.float32)),
    )


class Augmentation(nn.Cell):
    """Images (B, Y, X, 3) in [-1, 1], changed by what ``draw_augmentation`` drew."""

    def __init__(self) -> None:
        super().__init__()
        self.rows_at = layout.rows_at()

    def construct(
        self, images_byxc: Tensor, colours_3b: Tensor, pixels_n: Tensor, uncut_byx1: Tensor
    ) -> Tensor:
        b, y, x, c = images_byxc.shape
        brightness, saturation, contrast = three_parts(colours_3b.reshape(3, b, 1, 1, 1))
        images = images_byxc + brightness
        grey = means_over(images, (3,))
        images = (images - grey) * saturation + grey
        mean = means_over(images, (1, 2, 3))
        images = (images - mean) * contrast + mean
        rows = ops.concat((images.reshape(-1, c), ops.zeros((1, c), images.dtype)))
        return self.rows_at(rows, pixels_n).reshape(b, y, x, c) * uncut_byx1


def _grid(in_row_by: np.ndarray, in_column_bx: np.ndarray) -> np.ndarray:
    return in_row_by[:, :, None] & in_column_bx[:, None]
