"""The codebook starts on the data, follows it, and keeps its codes in use."""

import dataclasses
import logging

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train.parallel import workers
from var_train.training.codebook import (
    CodebookConfig,
    CodebookKeeper,
    count_hits,
    perplexities,
    taken,
)

CONFIG = tiny.tokenizer(vocab_size=16, latent_channels=3, phi_count=1, scales=(1, 2, 4))
BATCH = 4
IMAGES = np.random.default_rng(0).uniform(-1, 1, (BATCH, 3, 8, 8)).astype(np.float32)
KEPT = np.ones((3, BATCH), np.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One compiled encoder for all tests; each places the codes itself."""
    return Tokenizer(CONFIG)


def codes(tokenizer: Tokenizer) -> np.ndarray:
    return tokenizer.quantize.embedding.weight.asnumpy().copy()


def started(tokenizer: Tokenizer, **settings: object) -> CodebookKeeper:
    keeper = CodebookKeeper(tokenizer, CodebookConfig(**settings), BATCH)
    keeper.start(IMAGES, np.random.default_rng(1))
    return keeper


def tokens(ids: int | np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.asarray(ids, np.int32), (BATCH, CONFIG.schedule.length))


def follow(keeper: CodebookKeeper, ids_bl, vectors_blz, step=0, steps=100, kept=KEPT):
    return keeper.follow(step, steps, ids_bl, vectors_blz, kept, np.random.default_rng(step))


def test_the_data_start_places_codes_among_the_encoders_vectors(tokenizer):
    started(tokenizer, start="data")
    # the second placing used the vectors of the first codebook: repeat the first to find them
    first = np.random.default_rng(1)
    CodebookKeeper(tokenizer, CodebookConfig(), BATCH).start(IMAGES, first)
    vectors = np.concatenate(
        [np.asarray(v).reshape(-1, 3) for v in tokenizer.residual_vectors(IMAGES)]
    )
    spread = np.linalg.norm(vectors.std(0))
    distance = np.linalg.norm(codes(tokenizer)[:, None] - vectors, axis=-1).min(1)
    assert distance.max() < spread


def test_kmeans_lies_closer_to_the_vectors_than_random_codes(tokenizer):
    def mean_distance() -> float:
        total = 0.0
        for v in tokenizer.residual_vectors(IMAGES):
            flat = np.asarray(v).reshape(-1, 3)
            total += np.linalg.norm(flat[:, None] - codes(tokenizer), axis=-1).min(1).mean()
        return total

    started(tokenizer, start="kmeans")
    clustered = mean_distance()
    codebook = tokenizer.quantize.embedding.weight
    codebook.set_data(type(codebook)(np.random.default_rng(5).standard_normal((16, 3), np.float32)))
    assert clustered < mean_distance()


def test_moving_averages_draw_a_code_to_its_vectors_every_scale_alike(tokenizer):
    keeper = started(tokenizer, update="ema", ema_decay=0.5, revive_every=0)
    before = codes(tokenizer)
    vectors = np.random.default_rng(2).standard_normal((BATCH, 21, 3)).astype(np.float32)
    for step in range(30):
        follow(keeper, tokens(7), vectors, step)
    after = codes(tokenizer)
    means = [part.mean((0, 1)) for part in CONFIG.schedule.split(vectors)]
    np.testing.assert_allclose(after[7], np.mean(means, 0), atol=1e-4)
    np.testing.assert_array_equal(np.delete(after, 7, 0), np.delete(before, 7, 0))


def test_dropped_scales_neither_move_nor_count(tokenizer):
    keeper = started(tokenizer, update="ema", ema_decay=0.0, revive_every=0)
    before = codes(tokenizer)
    kept = KEPT.copy()
    kept[1:] = 0
    ids = tokens(np.r_[3, np.full(20, 5)])
    metrics = follow(keeper, ids, np.ones((BATCH, 21, 3), np.float32), kept=kept)
    np.testing.assert_allclose(codes(tokenizer)[3], 1)
    np.testing.assert_array_equal(codes(tokenizer)[5], before[5])
    assert metrics["perplexity"][1:] == [0.0, 0.0]


def test_revival_places_dead_codes_on_vectors_of_the_batch(tokenizer):
    keeper = started(tokenizer, revive_every=2)
    before = codes(tokenizer)
    vectors = 50 + np.random.default_rng(3).standard_normal((BATCH, 21, 3)).astype(np.float32)
    used = [0, 1, 2, 3]
    for step in range(2):
        metrics = follow(keeper, tokens(np.resize(used, 21)), vectors, step)
    assert metrics["revived"] == 12
    np.testing.assert_array_equal(codes(tokenizer)[used], before[used])
    batch = {tuple(v) for v in vectors.reshape(-1, 3)}
    assert all(tuple(c) in batch for c in codes(tokenizer)[4:])


def test_a_scale_of_too_few_codes_gets_the_least_used_ones(tokenizer):
    keeper = started(tokenizer, revive_every=1)
    ids = np.zeros((BATCH, 21), np.int32)  # the 1x1 scale uses one code, though 5 are its due
    ids[:, 1:] = np.resize(np.arange(16), (BATCH, 20))
    vectors = np.random.default_rng(3).standard_normal((BATCH, 21, 3)).astype(np.float32)
    metrics = follow(keeper, ids, vectors)
    placed = {tuple(v) for v in codes(tokenizer)} & {tuple(v) for v in vectors[:, 0]}
    assert metrics["revived"] == len(placed) == 4


def test_the_last_quarter_of_the_steps_revives_none(tokenizer):
    keeper = started(tokenizer, revive_every=1)
    assert follow(keeper, tokens(0), np.zeros((BATCH, 21, 3), np.float32), 75, 100)["revived"] == 0


def test_a_scale_is_not_called_collapsed_while_the_codebook_spreads(tokenizer, caplog):
    keeper = started(tokenizer, revive_every=0)
    for step in range(200):
        follow(keeper, tokens(0), np.zeros((BATCH, 21, 3), np.float32), step, 1000)
    assert not caplog.records


def test_a_collapsed_scale_is_named_in_a_warning_once(tokenizer, caplog):
    keeper = started(tokenizer, revive_every=0)
    rng = np.random.default_rng(4)
    with caplog.at_level(logging.WARNING):
        for step in range(203):
            ids = rng.integers(0, 16, (BATCH, 21)).astype(np.int32)
            follow(keeper, ids, np.zeros((BATCH, 21, 3), np.float32), step, 1000)
        assert not caplog.records
        for step in range(203, 800):
            follow(keeper, tokens(0), np.zeros((BATCH, 21, 3), np.float32), step, 1000)
    warned = [r.getMessage() for r in caplog.records]
    assert sorted(w.split("scale ")[1].split(" ")[0] for w in warned) == ["1x1", "2x2", "4x4"]


def test_a_restored_codebook_continues_exactly(tokenizer):
    rng = np.random.default_rng(6)
    steps = [
        (rng.integers(0, 16, (BATCH, 21)).astype(np.int32), rng.random((BATCH, 21, 3), np.float32))
        for _ in range(6)
    ]
    keeper = started(tokenizer, update="ema", revive_every=4)
    for step, (ids, vectors) in enumerate(steps[:3]):
        follow(keeper, ids, vectors, step)
    saved, codebook = {n: a.copy() for n, a in keeper.arrays().items()}, codes(tokenizer)
    for step, (ids, vectors) in enumerate(steps[3:], 3):
        follow(keeper, ids, vectors, step)
    expected = codes(tokenizer)

    again = CodebookKeeper(tokenizer, CodebookConfig(update="ema", revive_every=4), BATCH)
    again.restore(saved)
    weight = tokenizer.quantize.embedding.weight
    weight.set_data(type(weight)(codebook))
    for step, (ids, vectors) in enumerate(steps[3:], 3):
        follow(again, ids, vectors, step)
    np.testing.assert_array_equal(codes(tokenizer), expected)


def test_a_batch_with_fewer_vectors_than_codes_is_refused():
    small = Tokenizer(dataclasses.replace(CONFIG, vocab_size=85))
    with pytest.raises(InputError, match=r"vocab_size is 85; .* 4 images has 84"):
        CodebookKeeper(small, CodebookConfig(), BATCH)


@given(st.integers(1, 64), st.integers(1, 20))
def test_perplexity_is_the_number_of_codes_that_are_used_evenly(codes, times):
    hits = np.zeros((2, 64), np.float32)
    hits[0, :codes] = times
    assert perplexities(hits) == pytest.approx([codes, 0.0], rel=1e-5)


def test_hits_count_each_scales_codes_apart():
    ids = [np.array([[1], [1]]), np.array([[0, 2], [2, 2]])]
    np.testing.assert_array_equal(count_hits(ids, 3), [[0, 2, 0], [1, 0, 3]])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_workers_takes_the_same_vectors(monkeypatch, count):
    rng = np.random.default_rng(0)
    images, tokens_k = 4, np.array([1, 4])
    scales = [rng.standard_normal((images * n, 3)).astype(np.float32) for n in tokens_k]
    indices = [np.array([3, 0, 3]), np.array([15, 1])]
    expected = np.concatenate([s[i] for s, i in zip(scales, indices, strict=True)])
    monkeypatch.setattr(workers, "size", lambda: count)
    monkeypatch.setattr(workers, "all_reduce_sum", lambda array: array)
    total = 0
    for rank in range(count):
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        (share,) = workers.shares(images)
        begin_k, end_k = share.images.start * tokens_k, share.images.stop * tokens_k
        own = [s[b:e] for s, b, e in zip(scales, begin_k, end_k, strict=True)]
        total = total + taken(own, indices, begin_k)
    np.testing.assert_array_equal(total, expected)
