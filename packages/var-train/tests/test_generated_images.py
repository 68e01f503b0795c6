"""The images of a run: which random numbers they are drawn from, and with which settings."""

import dataclasses
import itertools

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import ops
from var_tokenizer import Tokenizer
from var_train.data.token_sources import TokenSet
from var_train.reports.generated_images import SamplingConfig, sample_classes
from var_train.reports.image_sheets import sample_grid
from var_train.training.transformer_stage import TransformerStageConfig, TransformerTraining
from var_transformer import Transformer, generate

SCALES = (1, 2, 4)
CLASSES = 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=SCALES), 0)


@pytest.fixture(scope="module")
def model() -> Transformer:
    """One whose logits depend on the class, so that guidance changes what is drawn."""
    config = tiny.transformer(depth=1, num_classes=CLASSES, scales=SCALES)
    model, rng = Transformer(config, 0), np.random.default_rng(0)
    for parameter in model.get_parameters():
        drawn = rng.standard_normal(parameter.shape) * 0.3
        ops.assign(parameter, ms.Tensor(drawn.astype(np.float32)))
    return model


def drawn_alone(model, tokenizer, label: int, number: int, sampling: SamplingConfig, seed: int):
    """Image ``number`` by the documented rule, in a batch of its own."""
    settings = {"cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return generate(model, tokenizer, [label], seed=seed, numbers=[number], **settings).images[0]


@pytest.mark.parametrize("batch", [2, 25])
def test_image_n_is_drawn_from_stream_n_of_the_seed_whatever_the_batch(model, tokenizer, batch):
    sampling = SamplingConfig(per_class=3, cfg=1.0, top_k=9, batch=batch)
    images, labels = sample_classes(model, tokenizer, sampling, seed=7)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    alone = [drawn_alone(model, tokenizer, n // 3, n, sampling, 7) for n in range(9)]
    np.testing.assert_allclose(images, np.stack(alone), atol=1e-5)
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(alone)) > 1e-3


def grid(model, tokenizer, sampling: SamplingConfig) -> np.ndarray:
    """What a validation draws, two images of each class."""
    rng = np.random.default_rng(0)
    ids_nl = rng.integers(0, 16, (8, model.config.schedule.length)).astype(np.int32)
    tokens = TokenSet(ids_nl, (np.arange(8) % CLASSES).astype(np.int32))
    stage = TransformerStageConfig(batch=8, samples_per_class=2)
    training = TransformerTraining(model, tokenizer, tokens, tokens, stage, 7, sampling)
    return training.validate(0)["samples"]


def test_a_validations_grid_is_drawn_like_the_final_images(model, tokenizer):
    sampling = SamplingConfig(cfg=0.0, top_k=9, batch=4)
    alone = [drawn_alone(model, tokenizer, n // 2, n, sampling, 7) for n in range(6)]
    expected = sample_grid(np.stack(alone), ["0", "1", "2"], 2).astype(int)
    found = grid(model, tokenizer, sampling)
    assert np.abs(found - expected).max() <= 1  # of 255: rounding
    other = grid(model, tokenizer, dataclasses.replace(sampling, cfg=1.5))
    assert np.abs(other - expected).max() > 1
