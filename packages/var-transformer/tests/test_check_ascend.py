"""The first hour's checks: they pass what is right, and name what is wrong."""

import json

import mindspore as ms
import numpy as np
import pytest
import tiny
from ascend_models import (
    AscendCOperators,
    FlashAttentionModel,
    WriteModel,
    flash_attention_model,
    infer_attention_model,
)
from mindspore import Tensor, nn, ops
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import InputError, cann, graph_api
from var_transformer import BackendConfig, ascend_c
from var_transformer.attention import ascend
from var_transformer.check_ascend import __main__ as command
from var_transformer.check_ascend.attention_checks import attention_checks
from var_transformer.check_ascend.checks import Finding, find
from var_transformer.check_ascend.operator_checks import operator_checks
from var_transformer.model import operators as fast

SCHEDULE = ScaleSchedule((1, (2, 3), 4, 5))
HEADS, HEAD_WIDTH = 3, 16
LENGTH = SCHEDULE.length
ENDS = np.array(SCHEDULE.offsets)[SCHEDULE.scale_of_token + 1][:, None]  # of a query's scale


@pytest.fixture
def modelled(monkeypatch):
    """Ascend's operators as NumPy models, which take float32, too."""
    monkeypatch.setattr(ops, "flash_attention_score", flash_attention_model)
    monkeypatch.setattr(ops, "fused_infer_attention_score", infer_attention_model)
    monkeypatch.setattr(ascend.auto_generate, "ReshapeAndCache", WriteModel)
    monkeypatch.setattr(ascend, "DTYPES", (*ascend.DTYPES, ms.float32))


def attention(way: str, dtype=ms.float32):
    """The finding of Ascend's attention: of "all scales", or "scale by scale"."""
    candidates = {"ascend": BackendConfig("ascend", dtype, "segments")}
    checks = attention_checks(SCHEDULE, HEADS, HEAD_WIDTH, 2, candidates, compiled=False)
    (check,) = (c for c in checks if c.name.endswith(way))
    return find(check)


def operator(name: str, dtype=ms.float32):
    checks = operator_checks(dtype, 2, 19, 128, 4, compiled=False)
    (check,) = (c for c in checks if c.name == name)
    return find(check)


# ---------------------------------------------------------------- what is right passes
@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_operators_of_this_device_are_as_defined(dtype, compiled):
    for check in operator_checks(dtype, 2, 19, 128, 4, compiled):
        assert find(check).fault == ""


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
@pytest.mark.parametrize("calls", [1e3, 1e5, 1e9])  # in one call, in some, in one for each scale
def test_the_models_of_ascends_operators_are_as_defined(monkeypatch, modelled, dtype, calls):
    monkeypatch.setattr(ascend, "_BATCH", calls)
    for way in ("all scales", "scale by scale"):
        assert attention(way, dtype).fault == ""


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_the_ascend_c_operators_on_their_model_are_as_defined(
    monkeypatch, modelled, kernels, dtype
):
    monkeypatch.setattr(ascend_c, "operators", lambda: AscendCOperators(kernels))
    assert operator("modulated norm in Ascend C", dtype).fault == ""
    for way in ("all scales", "scale by scale"):
        assert attention(way, ms.float16).fault == ""


def test_mindspore_does_not_warn_of_each_check_that_it_compiles(monkeypatch):
    warned = []
    monkeypatch.setattr(graph_api.logger, "warning", warned.append)
    for check in operator_checks(ms.float32, 2, 5, 32, 2):
        if check.name in ("GELU", "gated sum"):
            assert find(check).fault == ""
    assert warned == []


# ---------------------------------------------------------------- what is wrong is named
def calling(**changes):
    """Calls the model of the training operator with other arguments, made from its own."""

    def call(q, k, v, heads, attn_mask=None, next_tokens=2**31 - 1, **rest):
        arguments = {"attn_mask": attn_mask, "next_tokens": next_tokens} | rest
        for name, change in changes.items():
            arguments[name] = change(arguments.get(name))
        return flash_attention_model(q, k, v, heads, **arguments)

    return lambda patch: patch.setattr(ops, "flash_attention_score", call)


def masking(hidden_ll):
    return calling(attn_mask=lambda _: Tensor(hidden_ll), next_tokens=lambda _: LENGTH)


def relaid(order, shape):
    """Reads the operands' memory in another layout, and writes the result in it."""

    def seed(patch):
        def call(q, k, v, heads, **rest):
            read = [x.reshape(2, *shape).transpose(order) for x in (q, k, v)]
            mixed = flash_attention_model(*read, heads, **rest)
            return mixed.transpose(tuple(np.argsort(order).tolist())).reshape(q.shape)

        patch.setattr(ops, "flash_attention_score", call)

    return seed


def of_attention(name, change):
    """Replaces a method of Ascend's attention by ``change(method)``."""

    def seed(patch):
        patch.setattr(ascend.AscendAttention, name, change(getattr(ascend.AscendAttention, name)))

    return seed


def scaled(power):
    def change(heads_of):
        def wrong(self, q, k, v, scale):
            q, k, v = heads_of(self, q, k, v, ops.ones_like(scale))
            return q * (scale.reshape(1, 1, -1, 1) ** power), k, v

        return wrong

    return of_attention("heads_of", change)


def projection(parts):
    """Changes how queries, keys and values are taken from (B, L, 3 * C)."""

    def change(projected):
        def wrong(self, qkv, *rest):
            return projected(self, ops.concat(parts(qkv), 2), *rest)

        return wrong

    return of_attention("projected", change)


def thirds(*order):
    return lambda qkv: [ops.split(qkv, qkv.shape[-1] // 3, 2)[i] for i in order]


def by_head(qkv):
    apart = qkv.reshape(*qkv.shape[:2], HEADS, 3, HEAD_WIDTH)
    return [apart[:, :, :, i].reshape(*qkv.shape[:2], -1) for i in range(3)]


class OtherLength(nn.Cell):
    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def construct(self, x):
        return self.change(x)


def together(x):
    flat = x.reshape(*x.shape[:2], -1)
    return (flat * ops.rsqrt((flat * flat).sum(-1, keepdims=True))).reshape(x.shape)


def constant_length(x):
    return x * ops.stop_gradient(ops.rsqrt((x * x).sum(-1, keepdims=True)))


def length(change):
    return lambda patch: patch.setattr(
        "var_transformer.attention.base.UnitLength", lambda: OtherLength(change)
    )


def over_queries(patch):
    def weights(self, q, k):
        exponents = np.exp(q @ k.swapaxes(-1, -2)) * ~self.hidden(q.shape[2], k.shape[2])
        return exponents / exponents.sum(-2, keepdims=True)

    patch.setattr(FlashAttentionModel, "weights", weights)


def gradient(own_scale, centred):
    def seed(patch):
        def bprop(self, q, k, v, out, d_out):
            q_bnsd, k_bnsd, v_bnsd, d_bnsd = map(self.bnsd, (q, k, v, d_out))
            weights = self.weights(q_bnsd, k_bnsd)
            d_weights = d_bnsd @ v_bnsd.swapaxes(-1, -2)
            inner = (d_weights * weights).sum(-1, keepdims=True)
            d_scores = weights * (d_weights - centred * inner)
            scale = SCHEDULE.scale_of_token
            counted = (scale[:, None] == scale[None, :]) | (not own_scale)
            return (
                self.like(d_scores @ k_bnsd, q),
                self.like((counted * d_scores).swapaxes(-1, -2) @ q_bnsd, k),
                self.like((counted * weights).swapaxes(-1, -2) @ d_bnsd, v),
            )

        patch.setattr(FlashAttentionModel, "bprop", bprop)

    return seed


J = np.arange(LENGTH)[None, :]
ALL_SCALES = {
    "the mask's sense is inverted": calling(attn_mask=ops.logical_not),
    "the mask is left out": calling(attn_mask=lambda _: None),
    "the mask is causal by token": masking(J > J.T),
    "the prefix is a key short": masking(J >= ENDS - 1),
    "the prefix is a key long": masking(J > ENDS),
    "the band is a key narrow (next_tokens)": calling(next_tokens=lambda n: n - 1),
    "a scale sees only itself": masking(
        SCHEDULE.scale_of_token[:, None] != SCHEDULE.scale_of_token[None, :]
    ),
    "the scale is folded in twice": scaled(2),
    "the scale is left out": scaled(0),
    "1 / sqrt(d) is applied, too": calling(scalar_value=lambda _: HEAD_WIDTH**-0.5),
    "heads and tokens are swapped (BNSD for BSND)": relaid(
        (0, 2, 1, 3), (HEADS, LENGTH, HEAD_WIDTH)
    ),
    "heads and channels are swapped": relaid((0, 1, 3, 2), (LENGTH, HEAD_WIDTH, HEADS)),
    "the projection is split by head first": projection(by_head),
    "keys and values are swapped": projection(thirds(0, 2, 1)),
    "queries and keys are swapped": projection(thirds(1, 0, 2)),
    "queries and keys do not have length 1": length(lambda x: x),
    "all heads together have length 1": length(together),
    "the softmax runs over the queries": over_queries,
    "the gradient of a prefix is that of its own scale alone": gradient(True, True),
    "the length of queries and keys counts as a constant": length(constant_length),
    "the softmax's gradient is not centred": gradient(False, False),
}


@pytest.mark.parametrize("mistake", ALL_SCALES)
def test_a_mistake_in_the_attention_of_training_is_named(monkeypatch, modelled, mistake):
    ALL_SCALES[mistake](monkeypatch)
    assert attention("all scales").fault.endswith(f": {mistake}")


def test_a_short_prefix_beside_a_masked_call_is_named(monkeypatch, modelled):
    def shorter(q, k, v, heads, attn_mask=None, **rest):
        if attn_mask is None:
            k, v = k[:, :-1], v[:, :-1]
        return flash_attention_model(q, k, v, heads, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(ascend, "_BATCH", 1e5)
    monkeypatch.setattr(ops, "flash_attention_score", shorter)
    expected = ": the prefixes of the unmasked calls are a key short"
    assert attention("all scales").fault.endswith(expected)


def filled(change):
    """Another number of keys than are filled, from the end of the scale."""
    return lambda patch: patch.setattr(
        ascend, "_lengths", lambda b, end: Tensor(np.full(b, change(end), np.int64))
    )


def reading(change):
    """Other keys and values than the cache's; ``change(cache, rows of the scale)``."""

    def seed(patch):
        def infer(q, k, v, actual_seq_lengths_kv, **rest):
            end = int(actual_seq_lengths_kv.asnumpy()[0])
            own = slice(end - q.shape[1], end)
            k, v = (Tensor(change(x.asnumpy().copy(), own)) for x in (k, v))
            lengths = Tensor(np.full(q.shape[0], k.shape[1], np.int64))
            return infer_attention_model(q, k, v, lengths, **rest)

        patch.setattr(ops, "fused_infer_attention_score", infer)

    return seed


def unwritten(cache, own):
    cache[:, own] = 0
    return cache[:, : own.stop]


class LateWrite(WriteModel):
    """A row behind; what would be written behind the last row is lost."""

    def __call__(self, key, value, key_cache, value_cache, slot_mapping):
        for rows, cache in ((key, key_cache), (value, value_cache)):
            array = cache.asnumpy().copy()
            begin = int(slot_mapping.asnumpy()[0]) + 1
            kept = array[:, begin : begin + rows.shape[1]].shape[1]
            new = rows.asnumpy().reshape(*rows.shape[:2], *array.shape[2:])
            array[:, begin : begin + kept] = new[:, :kept]
            cache.assign_value(Tensor(array))
        return key


SCALE_BY_SCALE = {
    "a key too few is read": filled(lambda end: max(end - 1, 1)),
    "a key too many is read": filled(lambda end: min(end + 1, LENGTH)),
    "the whole buffer is read": filled(lambda end: LENGTH),
    "the earlier scales are not read": reading(lambda cache, own: cache[:, own]),
    "the cache is read before it is written": reading(unwritten),
    "the cache is written a row late": lambda patch: patch.setattr(
        ascend.auto_generate, "ReshapeAndCache", LateWrite
    ),
    "all images have the first one's cache": reading(
        lambda cache, own: cache[:1, : own.stop].repeat(2, 0)
    ),
    "the scale is folded in twice": scaled(2),
    "keys and values are swapped": projection(thirds(0, 2, 1)),
}


@pytest.mark.parametrize("mistake", SCALE_BY_SCALE)
def test_a_mistake_in_the_attention_of_generation_is_named(monkeypatch, modelled, mistake):
    SCALE_BY_SCALE[mistake](monkeypatch)
    assert attention("scale by scale").fault.endswith(f": {mistake}")


def forms(cell, construct):
    return lambda patch: patch.setattr(cell, "construct", construct)


def normal(x, epsilon=1e-6, less=0, still=lambda x: x):
    mean = still(x.mean(-1, keep_dims=True))
    variance = ((x - mean) ** 2).sum(-1, keepdims=True) / (x.shape[-1] - less)
    return (x - mean) * still(ops.rsqrt(variance + epsilon))


def half(x):
    return x.astype(ms.float16).astype(ms.float32)


NORM, MODULATED, LINEAR = fast.LayerNorm, fast.ModulatedNorm, fast.Linear
OPERATORS = {
    ("GELU", "the exact form (erf)"): forms(
        fast.Gelu, lambda self, x: 0.5 * x * (1 + ops.erf(x * 0.5**0.5))
    ),
    ("layer norm", "epsilon is 1e-5, not 1e-6"): forms(NORM, lambda self, x: normal(x, 1e-5)),
    ("layer norm", "the variance is divided by n - 1"): forms(
        NORM, lambda self, x: normal(x, less=1)
    ),
    ("layer norm", "mean and variance count as constants"): forms(
        NORM, lambda self, x: normal(x, still=ops.stop_gradient)
    ),
    ("modulated norm", "the 1 of 1 + scale is missing"): forms(
        MODULATED, lambda self, x, scale, shift: normal(x) * scale + shift
    ),
    ("modulated norm", "scale and shift are swapped"): forms(
        MODULATED, lambda self, x, scale, shift: normal(x) * (1 + shift) + scale
    ),
    ("modulated norm", "all images have the first one's modulation"): forms(
        MODULATED, lambda self, x, scale, shift: normal(x) * (1 + scale[:1]) + shift[:1]
    ),
    ("gated sum", "the gate is applied to x"): forms(
        fast.GatedSum, lambda self, x, branch, gate: gate * x + branch
    ),
    ("linear map", "the weight is transposed"): forms(
        LINEAR, lambda self, x, weight, bias: ops.matmul(x, weight) + bias
    ),
    ("linear map", "the bias is missing"): forms(
        LINEAR, lambda self, x, weight, bias: ops.matmul(x, weight.T)
    ),
    ("linear map", "the products round float32 to 10 bits (HF32, or half)"): forms(
        LINEAR, lambda self, x, weight, bias: ops.matmul(half(x), half(weight).T) + bias
    ),
    ("unit length", "the length counts as a constant"): forms(
        fast.UnitLength, lambda self, x: constant_length(x)
    ),
}


@pytest.mark.parametrize(("name", "mistake"), OPERATORS)
def test_a_mistake_in_an_operator_is_named(monkeypatch, name, mistake):
    OPERATORS[name, mistake](monkeypatch)
    assert operator(name).fault.endswith(f": {mistake}")


def test_a_mistake_nobody_thought_of_is_a_fault_with_its_size(monkeypatch):
    forms(fast.Gelu, lambda self, x: x)(monkeypatch)
    assert operator("GELU").fault.startswith("the result is off by ")
    assert operator("GELU").fault.endswith(": no known mistake")
    forms(fast.Gelu, lambda self, x: x / 0)(monkeypatch)
    assert operator("GELU").fault.endswith(": nothing but NaN or infinity")


def test_an_operator_without_a_kernel_is_a_finding_and_no_end(monkeypatch):
    def construct(self, x):
        raise RuntimeError("Kernel select failed\nand more lines")

    forms(fast.Gelu, construct)(monkeypatch)
    assert operator("GELU").fault == "does not run: Kernel select failed"


# ---------------------------------------------------------------- the command
@pytest.mark.slow  # compiles every check, twice
def test_a_report_has_every_check_and_time_as_json_and_as_tables(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "_RUNS", 4)
    monkeypatch.setattr(command.TransformerConfig, "preset", lambda _: tiny.transformer())
    monkeypatch.setattr(command, "TokenizerConfig", lambda **_: tiny.tokenizer())
    assert command.run(command.CheckConfig(tmp_path, batch=2, images=2)) == 0
    report = json.loads((tmp_path / "check_ascend.json").read_text())
    assert {"device": "CPU", "CANN": "none", "batch": 2}.items() <= report["where"].items()
    assert len(report["findings"]) >= 16 and not any(f["fault"] for f in report["findings"])
    for kind in ("calls", "steps", "images"):
        assert report[kind] and not any(timing["failure"] for timing in report[kind])
    tables = (tmp_path / "check_ascend.md").read_text()
    assert tables.count("| as defined |") == len(report["findings"])


def test_an_npu_without_cann_is_not_checked_as_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "find_npu", lambda: "/dev/davinci0")
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    with pytest.raises(InputError, match="CANN is missing"):
        command.run(command.CheckConfig(tmp_path))


def test_an_npu_that_mindspore_does_not_use_is_not_checked_as_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "find_npu", lambda: "/dev/davinci0")
    monkeypatch.setattr(cann, "check_cann", lambda: "8.5")
    with pytest.raises(InputError, match=r"/dev/davinci0 says .* the device is the CPU: .* CANN 8"):
        command.run(command.CheckConfig(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_failed_check_is_exit_code_1_and_among_the_last_lines(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(command, "examine", lambda *_: failed_report())
    caplog.set_level("INFO")
    assert command.run(command.CheckConfig(tmp_path)) == 1
    assert caplog.messages[-3:-1] == [
        "GELU, float16: the result | is off",
        "1 of 1 checks failed",
    ]
    assert json.loads((tmp_path / "check_ascend.json").read_text())["findings"][0]["error"] is None


def failed_report():
    finding = Finding("GELU", "float16", float("inf"), 1e-2, "the result | is off")
    return command.Report({}, [finding], [], [], [])
