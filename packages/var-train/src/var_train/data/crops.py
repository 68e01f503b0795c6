"""Crops as published: of a picture whose shorter side is 1.125 times as long as the image's.

Training takes a random crop, drawn from seed, step and image alone, so that a resumed run sees the
crops that an uninterrupted one would have seen. Validation takes the one in the centre.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

_STREAM = 5  # of random numbers under the seed; the stages have 1 to 4
_LARGER = 1.125
_LONGEST = 16  # times the shorter side: resized whole, a thin strip would fill the memory

Place = tuple[float, float]
"""Where a crop lies in what may be cut off above and on the left: each in [0, 1)."""
PlaceOf = Callable[[int], Place]
"""The place of the crop of an image, by its index."""


def draw_place(seed: int, step: int, index: int) -> Place:
    """The random place of image ``index`` at ``step``."""
    rng = np.random.default_rng((seed, _STREAM, step, int(index)))
    return rng.random(), rng.random()


def crops_of(
    picture: Image.Image, image_size: tuple[int, int], places: Sequence[Place | None]
) -> list[Image.Image]:
    """The crops of ``image_size`` (rows, columns) at ``places``; None for the one in the centre.

    The picture is resized by Lanczos, so that it just covers 1.125 times ``image_size``, rounded.
    A picture longer than 16 times its shorter side is cut to that first.
    """
    width, height = (min(side, _LONGEST * min(picture.size)) for side in picture.size)
    if (width, height) != picture.size:
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    rows, columns = (round(_LARGER * side) for side in image_size)
    if height * columns <= width * rows:
        size = (width * rows // height, rows)
    else:
        size = (columns, height * columns // width)
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    spare_yx = (size[1] - image_size[0], size[0] - image_size[1])
    crops = []
    for place in places:
        if place is None:
            top, left = (round(spare / 2) for spare in spare_yx)
        else:
            top, left = (int(p * (spare + 1)) for p, spare in zip(place, spare_yx, strict=True))
        crops.append(picture.crop((left, top, left + image_size[1], top + image_size[0])))
    return crops
