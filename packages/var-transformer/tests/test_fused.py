"""The fused operators behind the model's names: chosen where they are, gradients, MindSpore."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from attention_calls import Joined, assert_all_close, scale_by_scale, value_and_gradients
from mindspore import Tensor, nn, ops
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import InputError
from var_transformer import BackendConfig, ascend_c
from var_transformer.ascend_c import building
from var_transformer.attention import ascend, build
from var_transformer.check_ascend.checks import find
from var_transformer.check_ascend.operator_checks import operator_checks
from var_transformer.model import operators as fast


def modulated_norm(x, scale, shift):
    wide = x.astype(ms.float32)
    wide = wide - wide.mean(-1, keep_dims=True)
    norm = wide * ops.rsqrt((wide * wide).mean(-1, keep_dims=True) + 1e-6)
    return norm.astype(scale.dtype) * (1 + scale) + shift


def heads_apart(qkv, scale):
    b, length, c = qkv.shape
    heads = scale.shape[0]
    q, k, v = ops.split(qkv.reshape(b, length, 3 * heads, c // (3 * heads)), heads, 2)
    unit = fast.UnitLength()
    return unit(q) * scale.reshape(1, 1, -1, 1), unit(k), v


def cached_heads(qkv, scale, k_cache, v_cache, first):
    q, k, v = heads_apart(qkv, scale)
    for rows, cache in ((k, k_cache), (v, v_cache)):
        array = cache.asnumpy().copy()
        array[:, first : first + qkv.shape[1]] = rows.asnumpy()
        cache.assign_value(Tensor(array))
    return q


COMPOSED = SimpleNamespace(var_modulated_norm=modulated_norm, var_cached_heads=cached_heads)


def values(*shapes, seed=0, dtype=np.float32) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [Tensor(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


# ---------------------------------------------------------------- gradients
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_the_norm_has_its_definitions_gradient_in_each_pair_of_types(monkeypatch, dtype, compiled):
    monkeypatch.setattr(ascend_c, "operators", lambda: COMPOSED)
    checks = operator_checks(dtype, 2, 7, 64, 2, compiled)
    fused = [check for check in checks if "Ascend C" in check.name]
    assert len(fused) == (1 if dtype == ms.float32 else 2)
    for check in fused:
        assert find(check).fault == ""


# ---------------------------------------------------------------- the choice
def test_nothing_is_fused_without_an_ascend():
    assert ascend_c.operators() is None
    assert fast.ModulatedNorm().fused is None


def test_operators_are_composed_on_an_ascend_without_the_build(monkeypatch, tmp_path):
    monkeypatch.setattr(ms, "get_context", lambda _: "Ascend")
    monkeypatch.setattr(building, "directory", lambda: tmp_path)
    building._loaded.cache_clear()
    assert ascend_c.operators() is None
    building._loaded.cache_clear()


def test_the_build_without_cann_is_an_error_that_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    with pytest.raises(InputError, match=r"CANN is missing \(ASCEND_HOME_PATH"):
        ascend_c.build("dav-2201")
    monkeypatch.setattr(building, "check_cann", lambda: "8.5")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(building, "takes_built_operators", lambda: False)
    with pytest.raises(InputError, match=rf"MindSpore is {ms.__version__}, .* expected 2\.7\.1 or"):
        ascend_c.build("dav-2201")
    monkeypatch.setattr(building, "takes_built_operators", lambda: True)
    with pytest.raises(InputError, match=r"CANN is missing: ASCEND_OPP_PATH and bisheng"):
        ascend_c.build("dav-2201")
    monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path))
    (tmp_path / "bisheng").touch(0o755)
    monkeypatch.setattr(building, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"ninja and pyyaml is missing.* pip install ninja pyyaml"):
        ascend_c.build("dav-2201")


@pytest.fixture
def fused(monkeypatch):
    """Composed operators in the place of the built ones, float32 for exact comparisons."""
    monkeypatch.setattr(ascend_c, "operators", lambda: COMPOSED)
    monkeypatch.setattr(ascend, "DTYPES", (*ascend.DTYPES, ms.float32))


@pytest.mark.parametrize(("width", "calls"), [(128, 1), (96, 0)])
def test_a_width_that_the_operator_takes_is_fused_and_another_composed(monkeypatch, width, calls):
    counted = []

    def counting(x, scale, shift):
        counted.append(x.shape)
        return modulated_norm(x, scale, shift)

    operators = SimpleNamespace(var_modulated_norm=counting)
    monkeypatch.setattr(ascend_c, "operators", lambda: operators)
    monkeypatch.setattr(fast, "kernels", lambda: None)
    arguments = values((2, 3, width), (2, 1, width), (2, 1, width))
    got = fast.ModulatedNorm()(*arguments).asnumpy()
    np.testing.assert_allclose(got, modulated_norm(*arguments).asnumpy(), atol=1e-6)
    assert len(counted) == calls


# ---------------------------------------------------------------- attention through them
@pytest.fixture
def portable_attend(monkeypatch):
    """Portable attention's arithmetic in the place of Ascend's operators."""

    def mixed(q, k, v, hidden=None):
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        scores = ops.BatchMatMul(transpose_b=True)(q, k)
        if hidden is not None:
            scores = scores - 1e9 * hidden.astype(ms.float32)
        return ops.BatchMatMul()(ops.softmax(scores), v).transpose(0, 2, 1, 3)

    def flash(q, k, v, heads, attn_mask, **_):
        return mixed(q, k, v, attn_mask)

    def infer(q, k, v, actual_seq_lengths_kv=None, **_):
        filled = int(actual_seq_lengths_kv.asnumpy()[0])
        return (mixed(q, k[:, :filled], v[:, :filled]),)

    monkeypatch.setattr(ops, "flash_attention_score", flash)
    monkeypatch.setattr(ops, "fused_infer_attention_score", infer)


def test_training_does_without_the_fused_heads(fused, portable_attend, monkeypatch):
    monkeypatch.setattr(COMPOSED, "var_cached_heads", None)  # and so is not called
    schedule = ScaleSchedule((1, (2, 3), 4))
    qkv, scale = values((2, schedule.length, 96), (1, 2, 1, 1))
    d_out = values((2, schedule.length, 32), seed=1)
    results = []
    for backend in (BackendConfig("ascend", ms.float32), BackendConfig("portable")):
        attend = build(schedule, 2, 16, True, backend)
        results.append(value_and_gradients(Joined(attend), (qkv, scale), d_out))
    assert_all_close(*results, 2e-5)


def test_scale_by_scale_through_the_fused_write_is_all_at_once(fused, portable_attend):
    schedule = ScaleSchedule((1, (2, 3), 4))
    qkv, scale = values((2, schedule.length, 96), (1, 2, 1, 1))
    attend = build(schedule, 2, 16, True, BackendConfig("ascend", ms.float32))
    got, kept = scale_by_scale(attend, qkv, scale)
    assert kept == (), "the cache is written in place"
    np.testing.assert_allclose(got, Joined(attend)(qkv, scale).asnumpy(), atol=1e-5)


# ---------------------------------------------------------------- MindSpore's operators of them
@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """CustomOpBuilder's operators for the CPU, with the kernels on the model."""
    target, kernels = tmp_path_factory.mktemp("operators"), Path(ascend_c.__file__).parent
    model = Path(__file__).parent / "ascend_c_model"
    with pytest.MonkeyPatch.context() as patch:
        tools = Path(sys.executable).parent  # where ninja is, if it is installed beside
        patch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{tools}")
        building.build_operators(target, "CPU", [kernels / "kernels.cpp"], [model])
    return ascend_c.load(target)


@pytest.mark.slow  # a minute of g++ on MindSpore's headers
def test_mindspores_operators_run_the_kernels(operators):
    arguments = values((2, 5, 128), *((2, 1, 128),) * 2)
    expected = modulated_norm(*arguments).asnumpy()
    for dtype, tolerance in ((ms.float32, 1e-5), (ms.float16, 1e-2), (ms.bfloat16, 8e-2)):
        modulation = [x.astype(dtype) for x in arguments[1:]]
        got = operators.var_modulated_norm(arguments[0], *modulation)
        assert got.dtype == dtype
        # on the CPU a cast by MindSpore would not wait for the kernel; asnumpy does
        np.testing.assert_allclose(got.asnumpy().astype(np.float32), expected, 0, tolerance)

    qkv, scale = values((2, 5, 3 * 128), (4,))
    expected = [x.asnumpy() for x in heads_apart(qkv, scale)]
    caches = [Tensor(np.zeros((2, 9, 4, 32), np.float16)) for _ in range(2)]
    q = operators.var_cached_heads(qkv, scale, *caches, 3)
    np.testing.assert_allclose(q.asnumpy(), expected[0], 0, 2e-3)
    for cache, rows in zip(caches, expected[1:], strict=True):
        np.testing.assert_allclose(cache.asnumpy()[:, 3:8], rows, 0, 2e-3)
        assert not cache.asnumpy()[:, [0, 1, 2, 8]].any()


@pytest.mark.slow
def test_the_operators_are_primitives_before_which_no_graph_copies_a_cache(operators):
    assert len(vars(operators)) == 2
    assert all(isinstance(operator, ops.Primitive) for operator in vars(operators).values())


WRONG = [
    ("var_modulated_norm", ((2, 5, 96), (2, 1, 96), (2, 1, 96)), (), "width is 96; .* of 64"),
    ("var_modulated_norm", ((2, 5, 64), (2, 1, 64), (1, 1, 64)), (), "shapes .* expected"),
    (
        "var_cached_heads",
        ((2, 5, 3 * 64), (5,), *((2, 9, 5, 16),) * 2),
        (0,),
        r"expected \(B, L, 3 \* H \* d\)",
    ),
    (
        "var_cached_heads",
        ((2, 5, 3 * 160), (2,), *((2, 9, 2, 80),) * 2),
        (0,),
        "heads are 2 of width 80; .* to 64",
    ),
    (
        "var_cached_heads",
        ((2, 5, 96), (2,), *((2, 9, 2, 16),) * 2),
        (6,),
        "cache is full: it has 9",
    ),
    ("var_cached_heads", ((2, 5, 96), (2,), *((3, 9, 2, 16),) * 2), (0,), "caches have shapes"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shapes", "rest", "message"), WRONG)
def test_arguments_that_do_not_fit_stop_compilation(operators, name, shapes, rest, message):
    function, tensors = getattr(operators, name), values(*shapes)
    if name == "var_cached_heads":
        tensors[2:] = [x.astype(ms.float16) for x in tensors[2:]]

    def call(*tensors):
        return function(*tensors, *rest)

    # not in PyNative mode, which may raise an error again in a later call of another test
    with pytest.raises(RuntimeError, match=message):
        ms.jit(call)(*tensors)


class Both(nn.Cell):
    def __init__(self, operators) -> None:
        super().__init__()
        self.norm = operators.var_modulated_norm
        self.write = operators.var_cached_heads

    def construct(self, x, modulation, qkv, scale, keys, values):
        return self.norm(x, modulation, modulation), self.write(qkv, scale, keys, values, 3)


@pytest.mark.slow
def test_a_graph_of_fused_operators_stops_at_the_missing_kernel_only(operators):
    x, modulation, qkv, scale = values((2, 5, 64), (2, 1, 64), (2, 5, 96), (2,))
    caches = values(*((2, 9, 2, 16),) * 2, dtype=np.float16)
    with pytest.raises(RuntimeError, match=r"Kernel select failed[\s\S]*\[Custom_var_"):
        Both(operators).compile(x, modulation, qkv, scale, *caches)
