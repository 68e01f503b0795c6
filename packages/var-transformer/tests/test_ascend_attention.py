"""What the Ascend path computes, with NumPy models in the place of its operators."""

import itertools

import mindspore as ms
import numpy as np
import pytest
from ascend_models import WriteModel, flash_attention_model, infer_attention_model
from attention_calls import assert_all_close, value_and_gradients
from mindspore import Tensor, ops
from var_tokenizer import ScaleSchedule
from var_transformer import BackendConfig
from var_transformer.attention import ascend, build


@pytest.fixture
def modelled(monkeypatch):
    """The operators' models in the operators' places, which take float32, too."""
    monkeypatch.setattr(ops, "flash_attention_score", flash_attention_model)
    monkeypatch.setattr(ascend, "DTYPES", (*ascend.DTYPES, ms.float32))


def random_schedule(seed: int) -> ScaleSchedule:
    """Two to six scales; one of a single token and a non-square one among them."""
    rng = np.random.default_rng(seed)
    sizes = [(1, 1)]
    for _ in range(rng.integers(1, 6)):
        (rows, columns), down = sizes[-1], int(rng.integers(0, 3))
        sizes.append((rows + down, columns + down + int(rng.integers(1, 3))))
    return ScaleSchedule(tuple(sizes))


def masked_attention(q, k, v, d_y, scale, heads, schedule):
    """Full masked attention and its gradients, plainly, in float64; all (B, L, C)."""

    def apart(x):
        b, length, c = x.shape
        return x.astype(np.float64).reshape(b, length, heads, c // heads).transpose(0, 2, 1, 3)

    q, k, v, d_y, shape = apart(q), apart(k), apart(v), apart(d_y), q.shape
    scores = np.where(schedule.visible, scale * q @ k.swapaxes(-1, -2), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = d_y @ v.swapaxes(-1, -2)
    d_scores = scale * weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True))
    results = (
        weights @ v,
        d_scores @ k,
        d_scores.swapaxes(-1, -2) @ q,
        weights.swapaxes(-1, -2) @ d_y,
    )
    return [x.transpose(0, 2, 1, 3).reshape(shape) for x in results]


def all_scales(attend, scale):
    return lambda q_blc, k_blc, v_blc: attend(q_blc, k_blc, v_blc, scale, None, ())[0]


SEEDS = [pytest.param(n, marks=[] if n < 4 else pytest.mark.slow) for n in range(20)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_segments_equal_the_full_mask_forward_and_gradient(monkeypatch, modelled, seed, dtype):
    schedule, rng = random_schedule(seed), np.random.default_rng(seed)
    # a cheap launch cuts everywhere, a dear one nowhere
    monkeypatch.setattr(ascend, "_BATCH", 10.0 ** rng.uniform(4, 8))
    ways = [
        build(schedule, 2, 16, False, BackendConfig("ascend", dtype, calls))
        for calls in ("cheapest", "segments", "banded", "masked")
    ]
    kind = ms.dtype_to_nptype(dtype)
    shape = (2, schedule.length, 32)
    q, k, v = (rng.standard_normal(shape).astype(kind) for _ in range(3))
    d_y = (0.2 * rng.standard_normal(shape)).astype(kind)
    tensors = [Tensor(x) for x in (q, k, v)]
    expected = masked_attention(q, k, v, d_y, 0.25, 2, schedule)
    tolerance = 1e-5 if dtype == ms.float32 else 2e-3
    for attend in ways:
        got = value_and_gradients(all_scales(attend, 0.25), tensors, [Tensor(d_y)])
        assert_all_close(got, expected, tolerance)


# ---------------------------------------------------------------- what generation computes
@pytest.mark.parametrize("seed", range(5))
def test_scale_by_scale_from_the_cache_equals_the_full_mask(monkeypatch, modelled, seed):
    monkeypatch.setattr(ascend.auto_generate, "ReshapeAndCache", WriteModel)
    monkeypatch.setattr(ops, "fused_infer_attention_score", infer_attention_model)
    schedule, rng = random_schedule(seed), np.random.default_rng(seed)
    attend = build(schedule, 2, 16, False, BackendConfig("ascend", ms.float32))
    q, k, v = (rng.standard_normal((3, schedule.length, 32)).astype(np.float32) for _ in range(3))
    cache, got = attend.empty_cache(3), []
    for index, (begin, end) in enumerate(itertools.pairwise(schedule.offsets)):
        now = [Tensor(x[:, begin:end]) for x in (q, k, v)]
        mixed, kept = attend(*now, 0.25, index, cache)
        assert kept == (), "the cache is written in place"
        got.append(mixed.asnumpy())
    expected = masked_attention(q, k, v, q, 0.25, 2, schedule)[0]
    np.testing.assert_allclose(np.concatenate(got, 1), expected, rtol=0, atol=1e-5)


def test_unit_length_and_its_learned_scale_equal_the_portable_ones(modelled):
    schedule, rng = ScaleSchedule((1, (2, 3), 4)), np.random.default_rng(0)
    scale = Tensor(rng.uniform(1, 8, (1, 2, 1, 1)).astype(np.float32))
    *tensors, d_y = map(Tensor, rng.standard_normal((4, 2, schedule.length, 32), np.float32))
    got, expected = (
        value_and_gradients(all_scales(build(schedule, 2, 16, True, b), scale), tensors, [d_y])
        for b in (BackendConfig("ascend", ms.float32), BackendConfig("portable"))
    )
    assert_all_close(got, expected, 1e-5)
