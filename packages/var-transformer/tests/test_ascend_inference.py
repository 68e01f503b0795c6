"""The calls of Ascend's operators, checked without an Ascend by MindSpore's own inference.

MindSpore infers the shapes and types of a graph before it looks for kernels. So a graph that fails
at the missing kernel alone ("Kernel select failed") is right in the operators' own terms.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr
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
    ms.set_context(mode=ms.GRAPH_MODE)  # MindSpore 2.7.0 looks for no kernel in the other mode
    try:
        cell.compile(*inputs)
    except (RuntimeError, TypeError) as error:
        if "Kernel select failed" in str(error):
            return str(error)
        raise
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
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


def infer_training(preset, batch, dtype, length=None, calls="segments") -> str:
    """The message of a training step of attention; of ``length`` tokens, or all."""
    config, attend = attention_of(preset, dtype, backend=BackendConfig("ascend", dtype, calls))
    x = unfilled(batch, length or config.schedule.length, config.width, dtype=dtype)
    scale = Tensor(np.ones((1, config.heads, 1, 1), np.float32))
    return infer(Gradient(attend), x, x, x, scale)


def infer_generation(preset="d16", batch=1, dtype=ms.float16, cached=None) -> str:
    """The message of a generation; with a cache of ``cached`` images, or as many as the batch."""
    config, attend = attention_of(preset, dtype)
    length, heads = config.schedule.length, config.heads
    x = unfilled(batch, length, config.width, dtype=dtype)
    cache = unfilled(cached or batch, length, heads, config.width // heads, dtype=dtype)
    scale = Tensor(np.ones((1, heads, 1, 1), np.float32))
    return infer(EveryScale(attend), x, x, x, scale, cache, cache)


@pytest.mark.parametrize("calls", ["segments", "banded", "masked"])
@pytest.mark.parametrize(("preset", "batch", "dtype"), CALLS)
def test_training_passes_inference_forward_and_gradient(preset, batch, dtype, calls):
    stopped = infer_training(preset, batch, dtype, calls=calls)
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
    stopped = infer_generation(preset, batch, dtype)
    if dtype == ms.float16:
        assert "[ReshapeAndCache]" in stopped or "[FusedInferAttentionScore]" in stopped


class PrunedScale(nn.Cell):
    def __init__(self, attend: nn.Cell, span: tuple[int, int]) -> None:
        super().__init__()
        self.attend, self.span = attend, span

    def construct(self, q, scale, keys, values):
        return self.attend(q, q, q, scale, self.span, (keys, values))[0]


def test_a_scale_with_fewer_tokens_passes_inference(monkeypatch):
    monkeypatch.setattr(ops, "fused_infer_attention_score", checked_infer)
    config, attend = attention_of("d16", ms.float16)
    cache = unfilled(2, 680, config.heads, 64)
    scale, q = Tensor(np.ones((1, config.heads, 1, 1), np.float32)), unfilled(2, 85, config.width)
    stopped = infer(PrunedScale(attend, (255, 340)), q, scale, cache, cache)
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
    with pytest.raises(RuntimeError, match=r"FlashAttentionScore: .*head_num"):
        infer_training("d16", 1, dtype)


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
    with pytest.raises(AssertionError, match=message):
        infer_generation(cached=1 + (name == "check_cache"))


def one_slot_fewer(batch, length, begin, end):
    return Tensor(np.zeros(batch * (end - begin) - 1, np.int32))


def test_a_wrong_argument_of_the_writing_operator_is_caught(monkeypatch):
    monkeypatch.setattr(ascend, "_slots", constexpr(one_slot_fewer))
    with pytest.raises(RuntimeError, match="slot mapping"):
        infer_generation()


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_width": 40}, "head width is 40; .*multiples of 16"),
        ({"dtype": ms.float32}, "dtype is Float32; .*Float16 or BFloat16"),
    ],
)
def test_a_head_width_or_type_that_ascend_does_not_take_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        attention_of("d16", **{"dtype": ms.float16} | changes)


def test_a_cache_of_another_batch_is_an_error_that_names_both_shapes():
    with pytest.raises(InputError, match=r"\(3, 680, 16, 64\); expected \(2, 680, 16, 64\)"):
        infer_generation(batch=2, cached=3)


def test_tokens_that_the_schedule_does_not_have_are_an_error_that_names_both():
    with pytest.raises(InputError, match="600 tokens; expected 680"):
        infer_training("d16", 2, ms.float16, length=600)
