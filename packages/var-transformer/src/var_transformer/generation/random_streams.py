"""The random stream of image n: (seed, n), whichever batch the image is in."""

from collections.abc import Sequence

import numpy as np
from var_tokenizer.common import check_integer


def random_streams(seed: int, numbers: Sequence[int]) -> list[np.random.Generator]:
    """One random stream for each image number.

    Raises InputError unless the seed and the numbers are integers of at least 0.
    """
    for field, value in (("seed", seed), *(("numbers", n) for n in numbers)):
        check_integer(field, value, 0)
    return [np.random.default_rng((seed, n)) for n in numbers]
