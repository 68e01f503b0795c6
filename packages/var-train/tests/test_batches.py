"""The order of images in training: of an epoch, and of both stages."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from var_tokenizer import Tokenizer
from var_train.data.batches import epoch_order, step_indices
from var_train.data.image_sources import ImageSet
from var_train.data.token_sources import EncodedImages
from var_train.parallel import workers
from var_train.training.step_parts import draw_part
from var_train.training.tokenizer_stage import TokenizerStageConfig, TokenizerTraining
from var_train.training.transformer_stage import TransformerStageConfig, TransformerTraining
from var_transformer import Transformer


@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 10**6))
def test_an_epoch_has_every_image_once_in_an_order_of_seed_and_epoch(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    np.testing.assert_array_equal(order, epoch_order(n, seed, epoch))


@given(n=st.integers(1, 40), batch=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_epoch_has_every_image_once_whatever_the_batch(n, batch, seed):
    epochs = 3
    steps = -(-epochs * n // batch)
    taken = np.concatenate([step_indices(n, batch, seed, step) for step in range(steps)])
    for epoch in taken[: epochs * n].reshape(epochs, n):
        assert sorted(epoch) == list(range(n))


def test_epochs_and_seeds_differ_in_their_order():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_epochs_order_is_that_of_earlier_versions():
    assert epoch_order(8, seed=3, epoch=5).tolist() == [4, 0, 2, 6, 5, 1, 3, 7]


def test_both_stages_take_the_images_of_an_epoch_alike():
    taken: list[int] = []

    class Recorded(ImageSet):
        def batch(self, indices, *arguments):
            taken.extend(indices)
            return super().batch(indices, *arguments)

    images = Recorded(np.zeros((10, 4, 4, 3), np.uint8), np.zeros(10, np.int32), ("a",))
    tokenizer = Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=(1, 4)), 0)
    first = TokenizerTraining(tokenizer, images, images, TokenizerStageConfig(epochs=2, batch=4), 7)
    model = Transformer(tiny.transformer(depth=1, num_classes=1, scales=(1, 4)))
    settings = TransformerStageConfig(epochs=2, batch=4)
    tokens = EncodedImages(tokenizer, images)
    second = TransformerTraining(model, tokenizer, tokens, tokens, settings, 7)
    assert first.steps == second.steps == 5
    for step in range(5):
        first._prepare(step)
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    drawn = [i for step in range(5) for i in second._prepare(step)[0].indices_b]
    assert drawn == taken


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (1, 4), (3, 2)])
def test_an_image_has_the_draws_of_earlier_versions_in_whatever_part_it_is(
    monkeypatch, count, parts
):
    batch, rates_d = 13, np.array([0.0, 0.2, 0.5])
    rng = np.random.default_rng((7, 4, 3))  # as versions drew that drew for the whole batch at once
    unlabelled_b = rng.random(batch) < 0.1
    stays_d2b = rng.random((3, 2, batch)) >= rates_d[:, None, None]
    keep_d2b11 = (stays_d2b / (1 - rates_d[:, None, None]))[..., None, None].astype(np.float32)
    flip_b = rng.random(batch) < 0.5
    config = TransformerStageConfig(batch=batch, accumulation=parts, flip=True)
    monkeypatch.setattr(workers, "size", lambda: count)
    for rank in range(count):
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        for number, (own, weight) in enumerate(workers.shares(batch, parts)):
            part = draw_part(config, 50, rates_d, 7, 3, number)
            assert part.weight == weight
            np.testing.assert_array_equal(part.indices_b, step_indices(50, batch, 7, 3)[own])
            np.testing.assert_array_equal(part.unlabelled_b, unlabelled_b[own])
            np.testing.assert_array_equal(part.keep_d2b11, keep_d2b11[:, :, own])
            np.testing.assert_array_equal(part.flip_b, flip_b[own])
