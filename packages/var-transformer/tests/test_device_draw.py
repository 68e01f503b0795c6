"""The draw by operators of a graph against NumPy's."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mindspore import Tensor, mint, nn, ops
from var_transformer.generation.device_draw import DeviceDraw, draw_settings
from var_transformer.generation.filters import draw, filter_logits, softmax
from var_transformer.generation.sampler import ScaleSettings
from var_transformer.model import ascend_operators

B, TOKENS, V = 2, 3, 32
LOGITS = hnp.arrays(np.float32, (2 * B, TOKENS, V), elements=st.floats(-10, 10, width=32))
UNIFORM = hnp.arrays(np.int64, (B, TOKENS), elements=st.integers(1, 2**20 - 1)).map(
    lambda n: n / 2**20  # halves, quarters, ...: where equal tokens have their edges
)
SETTINGS = st.builds(
    ScaleSettings,
    strength=st.floats(0, 8),
    unconditional=st.just(True),
    top_k=st.integers(0, V),
    top_p=st.floats(0, 1),
    temperature=st.floats(0.1, 10),
    ratio=st.just(0.0),
)


SETTING = ScaleSettings(0.0, True, 0, 0.0, 1.0, 0.0)  # without guidance and filters
compiles_once = hypothesis_settings(deadline=None)  # the first example takes a second


class Compiled(nn.Cell):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.device_draw = DeviceDraw(vocab_size)

    @ms.jit
    def construct(self, logits_blv, uniform_bl1, settings_5):
        return self.device_draw(logits_blv, uniform_bl1, settings_5)


@pytest.fixture(scope="module")
def on_device():
    """Ids (B, l) of logits (B or 2B, l, V), in one graph whatever the settings."""
    compiled = Compiled(V)

    def drawn(logits_blv, uniform_bl, settings):
        values = Tensor(draw_settings(settings, V))
        return compiled(Tensor(logits_blv), Tensor(uniform_bl[..., None]), values).asnumpy()

    return drawn


def by_numpy(logits_blv, uniform_bl, settings):
    """As ``draw_scales`` computes them on a CPU."""
    t = np.float32(settings.strength)
    guided = (1 + t) * logits_blv[:B] - t * logits_blv[B:]
    if settings.temperature != 1:
        guided = guided / np.float32(settings.temperature)
    filtered = filter_logits(guided, settings.top_k, settings.top_p)
    return draw(softmax(filtered), uniform_bl)


@compiles_once
@given(LOGITS, UNIFORM, SETTINGS, st.booleans())
def test_ids_are_those_of_numpy_for_any_guidance_filters_and_ties(
    on_device, logits, uniform, settings, equal_logits
):
    logits = np.round(logits / 5) if equal_logits else logits
    expected = by_numpy(logits, uniform, settings)
    np.testing.assert_array_equal(on_device(logits, uniform, settings), expected)


@compiles_once
@given(UNIFORM, st.integers(1, V), st.floats(0, 1))
def test_among_equal_tokens_the_filters_keep_those_of_numpy(on_device, uniform, k, p):
    logits = np.zeros((2 * B, TOKENS, V), np.float32)
    settings = ScaleSettings(0.0, True, k, p, 1.0, 0.0)
    expected = by_numpy(logits, uniform, settings)
    np.testing.assert_array_equal(on_device(logits, uniform, settings), expected)


def probabilities_of_any_size(rng, shape):
    """Of a row, the least may be 2**-17 of the largest."""
    return softmax((12 * rng.random(shape) ** 4).astype(np.float32))


@pytest.mark.parametrize("vocab_size", [1, 2, 33, 4096])
def test_given_the_same_probabilities_every_id_is_numpys(vocab_size):
    rng = np.random.default_rng(vocab_size)
    p_blv = probabilities_of_any_size(rng, (8, 16, vocab_size))
    cumulative = np.cumsum(p_blv, -1, dtype=np.float64)
    # at an edge between two tokens, just below it, and anywhere
    token = rng.integers(0, vocab_size, (8, 16, 1))
    edge_bl = np.take_along_axis(cumulative / cumulative[..., -1:], token, -1)[..., 0] * 0.999999
    order_blv = np.argsort(p_blv, -1, kind="stable")
    ranked_blv = np.take_along_axis(p_blv, order_blv, -1)
    device_draw = DeviceDraw(vocab_size)
    for uniform_bl in (edge_bl, rng.random((8, 16)), np.zeros((8, 16))):
        drawn = device_draw.draw(
            Tensor(ranked_blv), Tensor(order_blv), Tensor(uniform_bl[..., None])
        )
        np.testing.assert_array_equal(drawn.asnumpy(), draw(p_blv, uniform_bl))


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_token(on_device, uniform):
    logits = np.zeros((2 * B, TOKENS, V), np.float32)
    ids = on_device(logits, np.full((B, TOKENS), uniform), SETTING)
    assert (ids == (V - 1 if uniform else 0)).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_marked_and_no_other(on_device, wrong):
    logits = np.zeros((2 * B, TOKENS, V), np.float32)
    logits[1, 2, 5] = wrong
    ids = on_device(logits, np.zeros((B, TOKENS)), SETTING)
    assert np.argwhere(ids == V).tolist() == [[1, 2]]


def test_logits_in_half_are_guided_and_filtered_in_float32(on_device):
    rng = np.random.default_rng(0)
    half = rng.normal(0, 3, (2 * B, TOKENS, V)).astype(np.float16)
    settings = ScaleSettings(7.3, True, 20, 0.9, 0.7, 0.0)
    uniform = rng.random((B, TOKENS))
    expected = by_numpy(half.astype(np.float32), uniform, settings)
    np.testing.assert_array_equal(on_device(half, uniform, settings), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_no_sum_of_floats_has_as_many_rows_as_the_matrix_units_would_take(monkeypatch, dtype):
    rows = []

    def cumsum(x, axis, dtype):
        rows.append(x.shape[0] * x.shape[1])
        return ops.CumSum()(x, axis)

    monkeypatch.setattr(mint, "cumsum", cumsum)
    monkeypatch.setattr(mint, "split", lambda x, size, axis: ops.split(x, size, axis))
    array = np.random.default_rng(0).integers(0, 9, (101, 256, 3)).astype(dtype)
    found = ascend_operators.cumulative_sum(Tensor(array))
    np.testing.assert_array_equal(found.asnumpy(), np.cumsum(array, -1))
    assert sum(rows) == 101 * 256 and (dtype is np.int32 or max(rows) < 12_800)
