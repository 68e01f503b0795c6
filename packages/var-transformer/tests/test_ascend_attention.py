"""What can be known of the Ascend path without an Ascend.

MindSpore infers shapes and types of a graph before it looks for kernels, so that a graph whose
only fault is the missing kernel ("Kernel select failed") is right in the operators' own terms. What
the operators compute is stood in for by a NumPy model of their documentation.
"""

import itertools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import InputError
from var_transformer import BackendConfig, TransformerConfig
from var_transformer.attention import ascend, build

PRESETS = ("d16", "d20", "d24", "d30", "d36-s")
HALVES = (ms.float16, ms.bfloat16)
CALLS = [
    pytest.param(p, b, t, marks=[] if (p, b) == ("d16", 96) else pytest.mark.slow)
    for p in PRESETS
    for b in (1, 96)
    for t in HALVES
]


class Gradient(nn.Cell):
    def __init__(self, attend: nn.Cell) -> None:
        super().__init__()
        self.attend = attend
        self.gradient = ops.GradOperation(get_all=True)

    def construct(self, q, k, v, scale):
        return self.gradient(self.all_scales)(q, k, v, scale)

    def all_scales(self, q, k, v, scale):
        return self.attend(q, k, v, scale, None, ())[0]


class EveryScale(nn.Cell):
    def __init__(self, attend: nn.Cell) -> None:
        super().__init__()
        self.attend = attend
        self.offsets = attend.offsets

    def construct(self, q, k, v, scale, keys, values):
        mixed = ()
        for i in range(len(self.offsets) - 1):
            begin, end = self.offsets[i], self.offsets[i + 1]
            q_blc, k_blc, v_blc = q[:, begin:end], k[:, begin:end], v[:, begin:end]
            y_blc, _ = self.attend(q_blc, k_blc, v_blc, scale, i, (keys, values))
            mixed = (*mixed, y_blc)
        return mixed


def unfilled(*shape: int, dtype=ms.float16) -> Tensor:
    """A tensor without memory: for graphs that are compiled and never run."""
    return Tensor(shape=list(shape), dtype=dtype, init=ms.common.initializer.Zero())


def infer(cell: nn.Cell, *inputs: Tensor) -> str:
    """Compiles a graph and returns the message at which it stops for want of a kernel.

    Kernels are looked for after all inference; what inference raises goes through.
    """
    try:
        cell.compile(*inputs)
    except (RuntimeError, TypeError) as error:
        if "Kernel select failed" in str(error):
            return str(error)
        raise
    raise AssertionError("the graph has a kernel for every operator; expected a fused one")


def attention_of(preset: str, dtype, **changes):
    config = TransformerConfig.preset(preset)
    fields = {
        "schedule": config.schedule,
        "heads": config.heads,
        "head_width": config.width // config.heads,
        "unit_length": config.qk_l2_norm,
        "backend": BackendConfig("ascend", dtype),
    }
    return config, build(**fields | changes)


@pytest.mark.parametrize("one_call", [False, True])
@pytest.mark.parametrize(("preset", "batch", "dtype"), CALLS)
def test_training_passes_inference_forward_and_gradient(preset, batch, dtype, one_call):
    config, attend = attention_of(preset, dtype, backend=BackendConfig("ascend", dtype, one_call))
    x = unfilled(batch, config.schedule.length, config.width, dtype=dtype)
    scale = Tensor(np.ones((1, config.heads, 1, 1), np.float32))
    stopped = infer(Gradient(attend), x, x, x, scale)
    if dtype == ms.float16:  # bfloat16 has no CPU kernel for earlier operators either
        assert "[FlashAttentionScore" in stopped


correct_infer = ops.fused_infer_attention_score


@constexpr
def check_as_documented(shapes, dtypes, lengths, heads, layout) -> None:
    """Rules of ``fused_infer_attention_score`` that MindSpore's inference of it lets pass."""
    q_bsnd, k_bsnd, v_bsnd = shapes
    assert layout == "BSND" and len(q_bsnd) == len(k_bsnd) == 4, "four axes in BSND"
    assert q_bsnd[2] == k_bsnd[2] == heads, "num_heads differs from the arrays' heads"
    assert (q_bsnd[0], q_bsnd[3]) == (k_bsnd[0], k_bsnd[3]), "batch or head width differ"
    assert k_bsnd == v_bsnd, "keys and values have one shape"
    assert q_bsnd[3] % 16 == 0 and q_bsnd[3] <= 512, "head width"
    assert len(set(dtypes)) == 1 and dtypes[0] in HALVES, "one half type"
    assert lengths.dtype == ms.int64 and lengths.shape == (q_bsnd[0],), "one length an image"
    assert lengths.asnumpy().max() <= k_bsnd[1], "more keys than there are"


def checked_infer(
    query, key, value, actual_seq_lengths_kv, num_heads, scale, input_layout, inner_precise
):
    shapes = (query.shape, key.shape, value.shape)
    dtypes = (query.dtype, key.dtype, value.dtype)
    check_as_documented(shapes, dtypes, actual_seq_lengths_kv, num_heads, input_layout)
    return correct_infer(
        query,
        key,
        value,
        actual_seq_lengths_kv=actual_seq_lengths_kv,
        num_heads=num_heads,
        scale=scale,
        input_layout=input_layout,
        inner_precise=inner_precise,
    )


@pytest.mark.parametrize(("preset", "batch", "dtype"), CALLS)
def test_each_scale_of_a_generation_passes_inference(monkeypatch, preset, batch, dtype):
    monkeypatch.setattr(ops, "fused_infer_attention_score", checked_infer)
    config, attend = attention_of(preset, dtype)
    x = unfilled(batch, config.schedule.length, config.width, dtype=dtype)
    cache = unfilled(
        batch, config.schedule.length, config.heads, config.width // config.heads, dtype=dtype
    )
    scale = Tensor(np.ones((1, config.heads, 1, 1), np.float32))
    stopped = infer(EveryScale(attend), x, x, x, scale, cache, cache)
    if dtype == ms.float16:
        assert "[ReshapeAndCache]" in stopped or "[FusedInferAttentionScore]" in stopped


correct = ops.flash_attention_score


def fewer_heads(q, k, v, heads, attn_mask, next_tokens, input_layout, sparse_mode):
    return correct(q, k, v, heads - 1, attn_mask=attn_mask, input_layout=input_layout)


def another_layout(q, k, v, heads, attn_mask, next_tokens, input_layout, sparse_mode):
    return correct(q, k, v, heads, attn_mask=attn_mask, input_layout="BNSD")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("wrong", [fewer_heads, another_layout])
def test_a_wrong_argument_of_the_training_operator_is_caught(monkeypatch, wrong, dtype):
    monkeypatch.setattr(ops, "flash_attention_score", wrong)
    config, attend = attention_of("d16", dtype)
    x = unfilled(1, config.schedule.length, config.width, dtype=dtype)
    scale = Tensor(np.ones((1, config.heads, 1, 1), np.float32))
    with pytest.raises(RuntimeError, match=r"FlashAttentionScore: .*head_num"):
        infer(Gradient(attend), x, x, x, scale)


@constexpr
def another_batchs_lengths(batch, end):
    return Tensor(np.full(batch + 1, end, np.int64))


@constexpr
def too_many_keys(batch, end):
    return Tensor(np.full(batch, end + 1, np.int64))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("_lengths", another_batchs_lengths, "one length an image"),
        ("_lengths", too_many_keys, "more keys than there are"),
        ("check_cache", constexpr(lambda *_: None), "batch or head width differ"),
    ],
)
def test_a_wrong_argument_of_the_reading_operator_is_caught(monkeypatch, name, wrong, message):
    monkeypatch.setattr(ops, "fused_infer_attention_score", checked_infer)
    monkeypatch.setattr(ascend, name, wrong)
    config, attend = attention_of("d16", ms.float16)
    x = unfilled(1, config.schedule.length, config.width)
    cache = unfilled(1 + (name == "check_cache"), config.schedule.length, config.heads, 64)
    scale = Tensor(np.ones((1, config.heads, 1, 1), np.float32))
    with pytest.raises(AssertionError, match=message):
        infer(EveryScale(attend), x, x, x, scale, cache, cache)


def one_slot_fewer(batch, length, begin, end):
    return Tensor(np.zeros(batch * (end - begin) - 1, np.int32))


def test_a_wrong_argument_of_the_writing_operator_is_caught(monkeypatch):
    monkeypatch.setattr(ascend, "_slots", constexpr(one_slot_fewer))
    config, attend = attention_of("d16", ms.float16)
    x = unfilled(1, config.schedule.length, config.width)
    cache = unfilled(1, config.schedule.length, config.heads, 64)
    scale = Tensor(np.ones((1, config.heads, 1, 1), np.float32))
    with pytest.raises(RuntimeError, match="slot mapping"):
        infer(EveryScale(attend), x, x, x, scale, cache, cache)


# ---------------------------------------------------------------- what the operator computes
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


def value_and_gradients(attend, q, k, v, d_y, scale):
    """The mixed values, and what d_y gives for queries, keys and values."""
    tensors = [Tensor(x) for x in (q, k, v)]

    def loss(q_blc, k_blc, v_blc):
        return (attend(q_blc, k_blc, v_blc, scale, None, ())[0] * Tensor(d_y)).sum()

    mixed = attend(*tensors, scale, None, ())[0]
    return [x.asnumpy() for x in (mixed, *ms.grad(loss, (0, 1, 2))(*tensors))]


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
    expected = masked_attention(q, k, v, d_y, 0.25, 2, schedule)
    tolerance = 1e-5 if dtype == ms.float32 else 2e-3
    for attend in ways:
        got = value_and_gradients(attend, q, k, v, d_y, 0.25)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


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
    query,
    key,
    value,
    actual_seq_lengths_kv,
    num_heads,
    scale,
    input_layout,
    inner_precise,
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
    q, k, v, d_y = (
        rng.standard_normal((2, schedule.length, 32)).astype(np.float32) for _ in range(4)
    )
    got, expected = (
        value_and_gradients(build(schedule, 2, 16, True, backend), q, k, v, d_y, scale)
        for backend in (BackendConfig("ascend", ms.float32), BackendConfig("portable"))
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_width": 40}, "head width is 40; .*multiples of 16"),
        (
            {"backend": BackendConfig("ascend", ms.float32)},
            "dtype is Float32; .*Float16 or BFloat16",
        ),
    ],
)
def test_what_the_fused_operators_do_not_take_is_an_error_that_says_what_they_do(changes, message):
    with pytest.raises(InputError, match=message):
        attention_of("d16", ms.float16, **changes)


def test_a_cache_of_another_batch_is_an_error_that_names_both_shapes():
    config, attend = attention_of("d16", ms.float16)
    x = unfilled(2, config.schedule.length, config.width)
    cache = unfilled(3, config.schedule.length, config.heads, 64)
    scale = Tensor(np.ones((1, config.heads, 1, 1), np.float32))
    with pytest.raises(InputError, match=r"\(3, 680, 16, 64\); expected \(2, 680, 16, 64\)"):
        infer(EveryScale(attend), x, x, x, scale, cache, cache)


def test_tokens_that_the_schedule_does_not_have_are_an_error_that_names_both():
    _, attend = attention_of("d16", ms.float16)
    x, scale = unfilled(2, 600, 1024), Tensor(np.ones((1, 16, 1, 1), np.float32))
    with pytest.raises(InputError, match="600 tokens; expected 680"):
        infer(Gradient(attend), x, x, x, scale)
