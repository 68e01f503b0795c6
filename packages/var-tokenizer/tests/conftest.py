"""Small tokenizers that every test can afford to compile."""

import numpy as np
import pytest
from var_tokenizer import Tokenizer, TokenizerConfig

TINY = TokenizerConfig(
    vocab_size=32,
    latent_channels=8,
    channels=32,
    channel_multipliers=(1, 1),
    res_blocks=1,
    scales=(1, 2, 4),
)


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    return Tokenizer(TINY)


@pytest.fixture(scope="session")
def images_bcyx() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 3, 8, 8)).astype(np.float32)
