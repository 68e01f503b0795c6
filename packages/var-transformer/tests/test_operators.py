"""Both forms of each operator on the CPU, C++ kernel and composed, against definitions."""

import logging

import mindspore as ms
import numpy as np
import pytest
from attention_calls import Joined, scale_by_scale, value_and_gradients
from definitions import gated_sum, gelu, linear, modulated_norm
from mindspore import Tensor
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import KernelLibrary
from var_transformer.attention import BackendConfig, build
from var_transformer.model import operators as fast

ABSENT = KernelLibrary("var_transformer._absent")


@pytest.fixture(params=["kernels", "composed"])
def form(request, monkeypatch):
    if request.param == "composed":
        monkeypatch.setattr(fast, "_kernels", ABSENT)
    elif fast._kernels.path is None:
        pytest.skip("the kernels were not built when the package was installed")
    return request.param


def both_forms(monkeypatch, make):
    """What ``make`` gives with the kernels and without them."""
    if fast._kernels.path is None:
        pytest.skip("the kernels were not built when the package was installed")
    kernel = make()
    monkeypatch.setattr(fast, "_kernels", ABSENT)
    return kernel, make()


def tensors(arrays):
    return [Tensor(array.astype(np.float32)) for array in arrays]


def numeric_gradient(function, arrays, weight, which):
    """Of sum(function(*arrays) * weight), by central differences in float64."""
    gradient = np.empty(arrays[which].shape)
    for index in np.ndindex(gradient.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = [a.copy() for a in arrays]
            moved[which][index] += step
            ends.append((function(*moved) * weight).sum())
        gradient[index] = (ends[0] - ends[1]) / 2e-5
    return gradient


TOKENS, VECTOR = (2, 19, 5), (2, 1, 5)  # more tokens than one chunk of the kernels
CASES = [
    pytest.param(fast.Gelu, gelu, [(3, 7)], id="gelu"),
    pytest.param(fast.ModulatedNorm, modulated_norm, [TOKENS, VECTOR, VECTOR], id="norm"),
    pytest.param(fast.GatedSum, gated_sum, [TOKENS, TOKENS, VECTOR], id="gated sum"),
    pytest.param(fast.Linear, linear, [(2, 7, 18), (18, 18), (18,)], id="linear, few rows"),
    pytest.param(fast.Linear, linear, [(101, 9), (9, 9), (9,)], id="linear, many rows"),
]


@pytest.mark.parametrize(("cell", "definition", "shapes"), CASES)
def test_an_operator_and_its_gradients_follow_the_definition(form, cell, definition, shapes):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    weight = rng.standard_normal(shapes[0])
    value, *gradients = value_and_gradients(cell(), tensors(arrays), tensors([weight]))
    np.testing.assert_allclose(value, definition(*arrays), atol=3e-6)
    for which, gradient in enumerate(gradients):
        expected = numeric_gradient(definition, arrays, weight, which)
        np.testing.assert_allclose(gradient, expected, atol=3e-5)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_a_linear_map_of_no_rows_has_gradients_of_zero(form, shape):
    arrays = np.zeros(shape), np.ones((400, 4)), np.ones(400)
    for _ in range(3):  # where a gradient is not written, its memory may hold anything
        value, *gradients = value_and_gradients(
            fast.Linear(), tensors(arrays), tensors([np.zeros((*shape[:-1], 400))])
        )
        assert value.shape == (*shape[:-1], 400)
        for array, gradient in zip(arrays, gradients, strict=True):
            np.testing.assert_array_equal(gradient, np.zeros(array.shape))


@pytest.mark.parametrize("rows", [1, 16, 17, 33, 48, 64, 65])
def test_a_linear_map_takes_any_number_of_rows(form, rows):
    rng = np.random.default_rng(rows)
    shapes = (rows, 530), (301, 530), (301,)  # too large to be composed
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    value = fast.Linear()(*map(Tensor, arrays)).asnumpy()
    expected = linear(*(array.astype(np.float64) for array in arrays))
    np.testing.assert_allclose(value, expected, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -31234.567])
@pytest.mark.parametrize("width", [5, 768])
def test_the_norm_of_equal_numbers_is_zero(form, width, value):
    x, zero = np.full((2, 19, width), value, np.float32), np.zeros((2, 1, width), np.float32)
    got = fast.ModulatedNorm()(Tensor(x), Tensor(zero), Tensor(zero)).asnumpy()
    np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize(("cell", "definition", "shapes"), CASES)
def test_operators_take_float16(form, cell, definition, shapes):
    arrays = [np.random.default_rng(0).standard_normal(s).astype(np.float16) for s in shapes]
    value = cell()(*map(Tensor, arrays))
    assert value.dtype == ms.float16
    np.testing.assert_allclose(value.asnumpy(), definition(*arrays), atol=2e-2)


def test_operators_are_composed_where_the_kernels_are_absent(monkeypatch, caplog):
    monkeypatch.setattr(fast, "_kernels", KernelLibrary("var_transformer._absent"))
    with caplog.at_level(logging.INFO, "var_tokenizer.common.kernels"):
        assert fast.kernels() is None
    assert [r.levelname for r in caplog.records] == ["INFO"]


@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize(("heads", "width", "scales"), [(2, 32, 3), (3, 16, 5), (1, 80, 4)])
def test_attention_and_its_gradients_agree_in_both_forms(
    monkeypatch, unit_length, heads, width, scales
):
    schedule, rng = ScaleSchedule(tuple(range(1, scales + 1))), np.random.default_rng(0)
    qkv = rng.standard_normal((2, schedule.length, 3 * heads * width))
    scale = rng.uniform(1, 4, (1, heads, 1, 1)) / (1 if unit_length else np.sqrt(width))
    weight = rng.standard_normal((2, schedule.length, heads * width))
    results = [
        value_and_gradients(Joined(attend), tensors((qkv, scale)), tensors([weight]))
        for attend in both_forms(monkeypatch, lambda: build(schedule, heads, width, unit_length))
    ]
    for kernel, composed in zip(*results, strict=True):
        assert np.abs(composed).max() > 0.1
        np.testing.assert_allclose(kernel, composed, rtol=3e-5, atol=2e-5)


def test_scale_by_scale_attention_agrees_in_both_forms(monkeypatch):
    schedule, rng = ScaleSchedule((1, 2, 3)), np.random.default_rng(0)
    qkv, scale = tensors([rng.standard_normal((2, schedule.length, 96)), np.full((1, 2, 1, 1), 3)])
    forms = both_forms(monkeypatch, lambda: build(schedule, 2, 16, True))
    kernel, composed = (scale_by_scale(attend, qkv, scale)[0] for attend in forms)
    np.testing.assert_allclose(kernel, composed, atol=2e-6)


@pytest.mark.parametrize("count", [1, 5, 14])
def test_the_first_scales_alone_are_attended_as_among_all(form, count):
    schedule, rng = ScaleSchedule((1, 2, 3)), np.random.default_rng(0)
    attend = build(schedule, 2, 16, True, BackendConfig())
    qkv, scale = tensors([rng.standard_normal((1, 14, 96)), np.full((1, 2, 1, 1), 3)])
    whole = Joined(attend)(qkv, scale).asnumpy()
    part = Joined(attend)(qkv[:, :count], scale).asnumpy()
    np.testing.assert_allclose(part, whole[:, :count], atol=1e-6)
