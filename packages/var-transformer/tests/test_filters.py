import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from var_transformer.generation.filters import draw, filter_logits, gumbel_mixture, softmax

LOGITS = hnp.arrays(np.float32, (2, 3, 8), elements=st.floats(-10, 10, width=32))


@given(LOGITS, st.integers(1, 8))
def test_top_k_keeps_the_k_likeliest_and_their_equals(logits, k):
    kept = np.isfinite(filter_logits(logits, top_k=k))
    assert (kept.sum(-1) >= k).all()
    kth = np.sort(logits, -1)[..., -k, None]
    np.testing.assert_array_equal(kept, logits >= kth)


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_a_likeliest_set_that_reaches_p(logits, p):
    kept = np.isfinite(filter_logits(logits, top_p=p))
    probabilities = softmax(logits.astype(np.float64))
    assert (np.where(kept, probabilities, 0).sum(-1) >= p - 1e-5).all()
    least_kept = np.where(kept, probabilities, 2).min(-1)
    most_dropped = np.where(kept, -1, probabilities).max(-1)
    assert (least_kept >= most_dropped - 1e-9).all()


def filtered_by_definition(logits, top_k, top_p):
    """Token by token in the order of their logits, of equal ones the first index first."""
    kth = np.sort(logits, -1)[..., -top_k, None]
    logits = np.where(logits < kth, -np.inf, logits)
    order = np.argsort(logits, axis=-1, kind="stable")
    reached = np.cumsum(softmax(np.take_along_axis(logits, order, -1)), -1)
    drop_ranked = reached <= 1 - top_p
    drop_ranked[..., -1] = False
    drop = np.empty_like(drop_ranked)
    np.put_along_axis(drop, order, drop_ranked, -1)
    return np.where(drop, -np.inf, logits)


@given(LOGITS, st.integers(0, 8), st.floats(0.01, 0.99), st.booleans())
def test_both_filters_together_are_those_of_the_definition(logits, k, p, equal_logits):
    logits = np.round(logits / 5) if equal_logits else logits
    expected = filtered_by_definition(logits, k or 8, p)
    np.testing.assert_array_equal(filter_logits(logits, k, p), expected)


@given(LOGITS)
def test_top_p_of_0_and_1_and_top_k_of_0_change_nothing(logits):
    for p in (0.0, 1.0):
        np.testing.assert_array_equal(filter_logits(logits, 0, p), logits)


@given(LOGITS, st.integers(0, 2**32 - 1))
def test_a_draw_never_takes_a_token_of_probability_0(logits, seed):
    probabilities = softmax(filter_logits(logits, top_k=2))
    uniform = np.random.default_rng(seed).random((2, 3))
    ids = draw(probabilities, uniform)
    assert (np.take_along_axis(probabilities, ids[..., None], -1) > 0).all()


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(uniform):
    probabilities = np.array([[[0.0, 0.25, 0.75, 0.0]]], np.float32)
    assert draw(probabilities, np.array([[uniform]]))[0, 0] == (1 if uniform == 0 else 2)


@given(LOGITS, st.floats(0, 1))
def test_a_mixture_is_a_distribution(logits, ratio):
    uniform = np.random.default_rng(0).uniform(0.01, 0.99, logits.shape)
    np.testing.assert_allclose(gumbel_mixture(logits, uniform, ratio).sum(-1), 1, atol=1e-5)


@given(LOGITS, st.floats(0, 1))
def test_a_mixture_sharpens_with_the_ratio(logits, ratio):
    uniform = np.full(logits.shape, 0.5)  # equal noise: other noise may make two codes equal
    sharpest = gumbel_mixture(logits, uniform, 1.0).max(-1)
    assert (sharpest >= gumbel_mixture(logits, uniform, ratio).max(-1) - 1e-6).all()
