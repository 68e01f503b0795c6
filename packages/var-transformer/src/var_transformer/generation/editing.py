"""Zero-shot editing: in-painting, out-painting and class-conditional editing of an image.

At every scale, tokens outside the mask are the image's own; those inside are drawn, given all
coarser scales, as in arXiv:2404.02905, section 5 ("zero-shot task generalization").
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from mindspore import Tensor
from var_tokenizer import LatentCodec, ScaleSchedule
from var_tokenizer.common import Array, InputError, checked_images, is_integer, to_unit_range

from var_transformer.generation.generate import Generation, KeptTokens, OnScale, draw_scales
from var_transformer.generation.random_streams import random_streams
from var_transformer.generation.sampler import Sampler
from var_transformer.model.checks import check_pair
from var_transformer.stored.stored_transformer import AnyTransformer


class ImageCodec(LatentCodec, Protocol):
    """What editing needs from a tokenizer, which must also read images."""

    def encode(self, images: Array) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] to ids; raises InputError for another shape."""

    def decode_progressive(self, ids: Sequence[Array]) -> list[Tensor]:
        """K batches of images (B, 3, H, W) in [-1, 1]: after 1, 2, ... K scales."""

    def decode(self, ids: Sequence[Array]) -> Tensor:
        """Ids of all K scales to images (B, 3, H, W) in [-1, 1]."""


def edit(
    model: AnyTransformer,
    tokenizer: ImageCodec,
    image: Array,
    mask: np.ndarray,
    label: int | Array,
    sampler: Sampler | None = None,
    seed: int = 0,
    *,
    on_scale: OnScale | None = None,
) -> Generation:
    """Redraws the part of ``image`` that ``mask`` marks, as an image of class ``label``.

    image: (3, H, W) float in [-1, 1]. mask: (H, W) bool, true where the image is redrawn;
    ``tokens_to_redraw`` says which tokens that means. label: a class, or (B,) classes for B
    variants; num_classes means "no class". sampler: how tokens are drawn, as in ``generate``.
    Variant n draws from the random stream (seed, n). on_scale: as in ``generate``.

    A mask that is false everywhere gives the tokenizer's reconstruction; one that is true
    everywhere gives what ``generate`` gives. Pixels outside the mask are decoded from the image's
    own tokens: close to the image, but not a copy.

    Raises InputError as ``generate`` does, and for an image or mask of another shape or range.
    """
    sampler = Sampler() if sampler is None else sampler
    labels_b = model.check_labels(np.atleast_1d(label))
    check_pair(model, tokenizer)
    sampler.check(len(tokenizer.schedule), tokenizer.vocab_size)
    streams = random_streams(seed, range(len(labels_b)))
    shape, mask_yx = np.shape(image), np.asarray(mask)
    if len(shape) != 3 or shape[0] != 3 or not all(shape):
        raise InputError(f"image has shape {shape}; expected (3, H, W)")
    if mask_yx.shape != shape[1:]:
        raise InputError(f"mask has shape {mask_yx.shape}; expected {shape[1:]}, the image's")
    image_cyx = checked_images("pixels of the image", image)

    redrawn = tokens_to_redraw(mask_yx, tokenizer.schedule)
    ids = [np.asarray(ids_1l) for ids_1l in tokenizer.encode(image_cyx[None])]
    ids = [np.repeat(ids_1l, len(labels_b), 0) for ids_1l in ids]
    if not mask_yx.any():
        if on_scale is not None:
            for k, images in enumerate(tokenizer.decode_progressive(ids)):
                on_scale(k, to_unit_range(images.asnumpy()))
        return Generation(to_unit_range(tokenizer.decode(ids).asnumpy()), ids)
    kept = KeptTokens(ids, [~marked_l for marked_l in redrawn])
    return draw_scales(model, tokenizer, labels_b, sampler, streams, kept, on_scale)


def tokens_to_redraw(mask_yx: np.ndarray, schedule: ScaleSchedule) -> list[np.ndarray]:
    """The tokens that a pixel mask marks: K bool arrays (s_y * s_x,).

    A token stands for a rectangle of the image. It is redrawn if at least half of the rectangle
    lies inside the mask; at the last scale, if any part does. So a token wholly outside is never
    redrawn, and one wholly inside always is. Raises InputError unless the mask is (H, W) bool.
    """
    if mask_yx.ndim != 2:
        raise InputError(f"mask has shape {mask_yx.shape}; expected (H, W)")
    if mask_yx.dtype != bool:
        raise InputError(f"mask has dtype {mask_yx.dtype}; expected bool")
    marked = []
    for k, (rows, columns) in enumerate(schedule.sizes):
        share_yx = (
            _overlap(rows, mask_yx.shape[0]) @ mask_yx @ _overlap(columns, mask_yx.shape[1]).T
        )
        last = k + 1 == len(schedule)
        marked.append((share_yx > 1e-9 if last else share_yx >= 0.5 - 1e-9).reshape(-1))
    return marked


def box_mask(box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """(H, W) bool, true in rows y0..y1-1 and columns x0..x1-1 of ``box`` = (y0, x0, y1, x1).

    Raises InputError for a box that is empty or leaves the image.
    """
    if len(box) != 4 or not all(is_integer(edge) for edge in box):
        raise InputError(f"box is {tuple(box)}; expected four integers (y0, x0, y1, x1)")
    y0, x0, y1, x1 = box
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise InputError(
            f"box is {tuple(box)}; expected (y0, x0, y1, x1) with 0 <= y0 < y1 <= {height} "
            f"and 0 <= x0 < x1 <= {width}"
        )
    mask_yx = np.zeros((height, width), bool)
    mask_yx[y0:y1, x0:x1] = True
    return mask_yx


def _overlap(cells: int, pixels: int) -> np.ndarray:
    """(cells, pixels): the share of each of ``cells`` equal intervals that each pixel covers."""
    edges = np.arange(cells + 1)[:, None] * pixels / cells
    start = np.arange(pixels)
    covered = np.minimum(edges[1:], start + 1) - np.maximum(edges[:-1], start)
    return np.maximum(covered, 0) * cells / pixels
