"""What the Ascend path computes, with NumPy models in the place of its operators."""

import itertools

import mindspore as ms
import numpy as np
import pytest
from attention_calls import assert_all_close, value_and_gradients
from mindspore import Tensor, nn, ops
from var_tokenizer import ScaleSchedule
from var_transformer import BackendConfig
from var_transformer.attention import ascend, build


class FlashAttentionModel(nn.Cell):
    """NumPy model of ``ops.flash_attention_score`` as documented, forward and gradient.

    The layouts name the axes (B batch, S tokens, N heads, D head width, H = N * D); a mask is
    bool or uint8 and True hides; sparse_mode 0 applies the mask, if any, inside the band of
    pre_tokens and next_tokens, 1 the whole mask, 2 and 3 are causal from the upper left and the
    lower right. Sums are in float64 here, results in the type of the query.
    """

    def __init__(self, heads, layout, mask, sparse_mode, pre, nxt, scalar) -> None:
        super().__init__()
        self.set_model = (heads, layout, mask, sparse_mode, pre, nxt, scalar)

    def bnsd(self, x: Tensor) -> np.ndarray:
        heads, layout = self.set_model[:2]
        array = x.asnumpy().astype(np.float64)
        if "H" in layout:
            array = array.reshape(*array.shape[:2], heads, -1)
            layout = layout.replace("H", "ND")
        assert array.shape[layout.index("N")] == heads, "head_num differs from the query's"
        return array.transpose([layout.index(axis) for axis in "BNSD"])

    def like(self, array: np.ndarray, x: Tensor) -> Tensor:
        layout = self.set_model[1].replace("H", "ND")
        array = array.transpose(["BNSD".index(axis) for axis in layout])
        return Tensor(array.reshape(x.shape).astype(x.asnumpy().dtype))

    def hidden(self, rows: int, columns: int) -> np.ndarray:
        _, _, mask, mode, pre, nxt, _ = self.set_model
        i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
        if mode in (2, 3):
            assert mask.shape == (2048, 2048), "causal modes want the compressed mask"
            return j - (columns - rows if mode == 3 else 0) > i
        if mask is None:
            assert mode == 0, "sparse_mode 1 wants the whole mask"
            return np.zeros((rows, columns), bool)
        assert mask.dtype in (ms.bool_, ms.uint8), "a mask is bool or uint8"
        assert mask.shape[-2:] == (rows, columns), "a mask covers queries times keys"
        outside = (j - i > nxt) | (i - j > pre)
        return mask.asnumpy().astype(bool) | (outside if mode == 0 else False)

    def weights(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        scores = self.set_model[-1] * q @ k.swapaxes(-1, -2)
        scores = np.where(self.hidden(*scores.shape[-2:]), -np.inf, scores)
        exponents = np.exp(scores - scores.max(-1, keepdims=True))
        return exponents / exponents.sum(-1, keepdims=True)

    def construct(self, q, k, v):
        weights = self.weights(self.bnsd(q), self.bnsd(k))
        return self.like(weights @ self.bnsd(v), q)

    def bprop(self, q, k, v, out, d_out):
        q_bnsd, k_bnsd, v_bnsd, d_bnsd = map(self.bnsd, (q, k, v, d_out))
        weights = self.weights(q_bnsd, k_bnsd)
        d_weights = d_bnsd @ v_bnsd.swapaxes(-1, -2)
        inner = (d_weights * weights).sum(-1, keepdims=True)
        d_scores = self.set_model[-1] * weights * (d_weights - inner)
        return (
            self.like(d_scores @ k_bnsd, q),
            self.like(d_scores.swapaxes(-1, -2) @ q_bnsd, k),
            self.like(weights.swapaxes(-1, -2) @ d_bnsd, v),
        )


def flash_attention_model(
    query,
    key,
    value,
    head_num,
    attn_mask=None,
    scalar_value=1.0,
    pre_tokens=2**31 - 1,
    next_tokens=2**31 - 1,
    input_layout="BSH",
    sparse_mode=0,
):
    settings = (attn_mask, sparse_mode, pre_tokens, next_tokens, scalar_value)
    return FlashAttentionModel(head_num, input_layout, *settings)(query, key, value)


@pytest.fixture
def modelled(monkeypatch):
    """The operator's model in the operator's place, which takes float32, too."""
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
    ways = [build(schedule, 2, 16, False, BackendConfig("ascend", dtype, f)) for f in (False, True)]
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
class WriteModel:
    """``ReshapeAndCache``: rows (B, S, N * D) go to slots of caches (blocks, rows, N, D)."""

    def __call__(self, key, value, key_cache, value_cache, slot_mapping) -> Tensor:
        for rows, cache in ((key, key_cache), (value, value_cache)):
            array = cache.asnumpy().copy()
            flat = array.reshape(-1, rows.shape[-1])
            flat[slot_mapping.asnumpy()] = rows.asnumpy().reshape(-1, rows.shape[-1])
            cache.assign_value(Tensor(array))
        return key


def infer_attention_model(
    query, key, value, actual_seq_lengths_kv, num_heads, scale, input_layout, inner_precise
):
    """``fused_infer_attention_score`` without a mask, in BSND."""
    assert input_layout == "BSND" and inner_precise in (0, 1)
    (filled,) = set(actual_seq_lengths_kv.asnumpy().tolist())
    mixed = flash_attention_model(
        query,
        key[:, :filled],
        value[:, :filled],
        num_heads,
        scalar_value=scale,
        input_layout=input_layout,
    )
    return mixed, None


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
