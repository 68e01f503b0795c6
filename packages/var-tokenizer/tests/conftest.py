"""A tiny tokenizer, and images of its size."""

import numpy as np
import pytest
import tiny
from mindspore import Tensor
from var_tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny.tokenizer(scales=(1, 2, 4)))


@pytest.fixture(scope="session")
def images_bcyx() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="session")
def images_byxc(images_bcyx) -> Tensor:
    """The same for the training pass."""
    return Tensor(np.ascontiguousarray(images_bcyx.transpose(0, 2, 3, 1)))
