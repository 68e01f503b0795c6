"""The samplers: settings, the peer's probabilities, and the statistics of what is drawn."""

import numpy as np
import peers
import pytest
from var_tokenizer.common import InputError
from var_transformer import Sampler, generate
from var_transformer.generation.filters import draw, filter_logits, gumbel_mixture, softmax
from var_transformer.generation.speed import SPEEDS

DRAWS = 20_000
LOGITS_V = np.array([2.0, 1.5, 1.2, 0.3, 0.0, -0.2, -1.0, -2.5], np.float32)
CHI_SQUARED_999 = [0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32]  # by degrees of freedom


@pytest.fixture(scope="module")
def peer():
    return peers.load()


@pytest.mark.parametrize("top_k", [0, 1, 7, 64])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.95])
def test_filtered_probabilities_are_the_peers(peer, top_k, top_p):
    import torch

    logits = 3 * np.random.default_rng(0).standard_normal((2, 50, 64)).astype(np.float32)
    expected = peer.filter_logits(torch.from_numpy(logits.copy()), top_k, top_p).softmax(-1)
    got = softmax(filter_logits(logits, top_k, top_p))
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_ids_of_every_scale_are_the_peers_with_top_k_of_1(peer, model, tokenizer):
    import torch

    config = model.config
    weights = {n: torch.from_numpy(a.copy()) for n, a in model.published_tensors().items()}
    for i in range(config.depth):
        weights[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(config.width)
    weights["lvl_1L"] = torch.from_numpy(config.schedule.scale_of_token.astype(np.int64))[None]
    vae = {n: torch.from_numpy(a.copy()) for n, a in tokenizer.published_tensors().items()}
    spec = peers.var_spec(config)
    labels = np.array([1, 4, 2])
    images, ids = peer.generate(weights, vae, torch.from_numpy(labels), spec, cfg=3.0, top_k=1)
    out = generate(model, tokenizer, labels, cfg=3.0, top_k=1)
    for got, expected in zip(out.ids, ids, strict=True):
        np.testing.assert_array_equal(got, expected.numpy())
    np.testing.assert_allclose(out.images, images.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"),
    [(0, 0.0, 1.0), (3, 0.0, 1.0), (0, 0.8, 1.0), (5, 0.9, 1.0), (0, 0.0, 0.5), (4, 0.7, 2.0)],
)
def test_draws_follow_the_filtered_probabilities(top_k, top_p, temperature):
    logits = filter_logits(LOGITS_V[None, None] / np.float32(temperature), top_k, top_p)
    probabilities = softmax(logits.astype(np.float64))[0, 0]
    if top_k:
        assert (probabilities > 0).sum() <= top_k
    uniform = np.random.default_rng(0).random((1, DRAWS))
    ids = draw(np.broadcast_to(softmax(logits), (1, DRAWS, 8)), uniform)[0]
    assert_follows(ids, probabilities)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_the_strongest_code_of_a_mixture_follows_the_sharpened_probabilities(ratio):
    uniform = np.random.default_rng(1).random((1, DRAWS, 8))
    weights = gumbel_mixture(np.broadcast_to(LOGITS_V, (1, DRAWS, 8)), uniform, ratio)
    assert_follows(weights[0].argmax(-1), softmax(LOGITS_V.astype(np.float64) * (1 + ratio)))


def assert_follows(ids, probabilities):
    """The chi-squared test at 0.1 %."""
    counts = np.bincount(ids, minlength=len(probabilities))
    possible = probabilities > 0
    assert not counts[~possible].any()
    expected = DRAWS * probabilities[possible]
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    assert statistic < CHI_SQUARED_999[possible.sum() - 1] or possible.sum() == 1


def strengths(**settings):
    return [scale.strength for scale in Sampler(cfg=4.0, **settings).plan(5)]


def test_guidance_is_linear_constant_or_none():
    assert strengths() == [0, 1, 2, 3, 4]
    assert strengths(guidance="constant") == [4, 4, 4, 4, 4]
    assert strengths(guidance="none") == [0, 0, 0, 0, 0]


def test_the_unconditional_half_runs_up_to_the_last_guided_scale():
    plan = Sampler(cfg=4.0, guidance="constant", guided_scales=(1, 2)).plan(5)
    assert [settings.strength for settings in plan] == [0, 4, 4, 0, 0]
    assert [settings.unconditional for settings in plan] == [True, True, True, False, False]
    assert not any(settings.unconditional for settings in Sampler(cfg=0).plan(5))


def test_a_setting_may_have_one_value_for_each_scale():
    plan = Sampler(top_k=(1, 2, 3), top_p=(0.1, 0.2, 0.3), temperature=(1, 2, 3)).plan(3)
    found = [(s.top_k, s.top_p, s.temperature) for s in plan]
    assert found == [(1, 0.1, 1), (2, 0.2, 2), (3, 0.3, 3)]


def test_each_point_of_speed_does_what_its_settings_do():
    for speed, point in enumerate(SPEEDS):
        settings = {"guided_scales": range(5 - point.unguided), "pruned": point.pruned}
        assert Sampler(cfg=4.0, speed=speed).plan(5, 1) == Sampler(cfg=4.0, **settings).plan(5, 1)
        assert Sampler(speed=speed).prunes == any(point.pruned)


def test_each_point_of_speed_computes_less_than_the_one_before():
    def work(speed):
        plan = Sampler(cfg=4.0, speed=speed).plan(5)
        return sum((1 + s.unconditional) * (1 - (s.pruned or 0)) for s in plan)

    points = [work(speed) for speed in range(len(SPEEDS))]
    assert points == sorted(points, reverse=True) and len(set(points)) == len(points)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": 5}, "speed is 5, whose pruned has 2 values; expected less than 2"),
        ({"pruned": (0.5,) * 2}, "pruned has 2 values; expected less than 2"),
    ],
)
def test_too_many_pruned_scales_are_an_error(settings, message):
    with pytest.raises(InputError, match=message):
        Sampler(**settings).check(scales=2, vocab_size=32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 33}, "top_k is 33; expected 0 to 32"),
        ({"top_p": (0.5, 0.5)}, "top_p has 2 values; expected one, or one for each of 3 scales"),
        ({"guided_scales": (3,)}, "guided_scales is 3; expected an integer from 0 to 2"),
    ],
)
def test_a_setting_that_does_not_suit_the_model_is_an_error(settings, message):
    with pytest.raises(InputError, match=message):
        Sampler(**settings).check(scales=3, vocab_size=32)
