import logging

import mindspore as ms
import numpy as np
import pytest
from definitions import convolution, group_norm
from mindspore import Tensor
from var_tokenizer import operators as fast
from var_tokenizer.common.kernels import KernelLibrary

ABSENT = KernelLibrary("var_tokenizer._absent")


@pytest.fixture(params=["kernels", "composed"])
def form(request, monkeypatch):
    """Each form of the operators on the CPU: C++ kernels, and composed operators without them."""
    if request.param == "composed":
        monkeypatch.setattr(fast, "_kernels", ABSENT)
    elif fast._kernels.path is None:
        pytest.skip("the kernels were not built when the package was installed")
    return request.param


def test_operators_are_composed_where_the_kernels_are_absent(monkeypatch, caplog):
    monkeypatch.setattr(fast, "_kernels", KernelLibrary("var_tokenizer._absent"))
    with caplog.at_level(logging.INFO, "var_tokenizer.common.kernels"):
        cells = [fast.conv2d(3), fast.conv2d(3, upsampled=True), fast.conv2d_plus(3)]
        cells += [fast.group_norm(4), fast.nearest_code()]
    assert not [type(cell) for cell in cells if "Kernel" in type(cell).__name__]
    assert [r.levelname for r in caplog.records] == ["INFO"]


def gradients(cell, g, *arguments):
    """Those of the sum of ``g`` times the result, by each argument."""

    def product(*tensors):
        return (cell(*tensors) * Tensor(g)).sum()

    grads = ms.grad(product, tuple(range(len(arguments))))(*map(Tensor, arguments))
    return [grad.asnumpy() for grad in grads]


def arrays(b, y, x, c, o, seed=8):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((o, 3, 3, c)) / (3 * np.sqrt(c))
    shapes = (b, y, x, c), (o,), (b, y, x, o)
    x, bias, plus = (rng.standard_normal(shape) for shape in shapes)
    return [a.astype(np.float32) for a in (x, weight, bias, plus)]


CONVOLUTIONS = [(1, 1, (0, 0)), (3, 1, (1, 1)), (3, 2, (0, 1)), (4, 2, (1, 1)), (1, 2, (0, 0))]


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (16, 32), (20, 3)])
@pytest.mark.parametrize(("kernel", "stride", "pads"), CONVOLUTIONS)
def test_a_convolution_and_its_gradients_equal_their_definition(
    form, kernel, stride, pads, inputs, outputs
):
    size = [(n + sum(pads) - kernel) // stride + 1 for n in (6, 8)]
    shapes = (2, 6, 8, inputs), (outputs, kernel, kernel, inputs), (outputs,), (2, *size, outputs)
    rng = np.random.default_rng(0)
    x, weight, bias, g = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    cell = fast.conv2d(kernel, stride, pads)
    out, *expected = convolution(x, weight, stride, pads[0], size, g)
    got = cell(Tensor(x), Tensor(weight), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(got, out + bias, atol=3e-5)
    for grad, wanted in zip(
        gradients(cell, g, x, weight, bias), (*expected, g.sum((0, 1, 2))), strict=True
    ):
        np.testing.assert_allclose(grad, wanted, atol=1e-4)


def test_a_convolution_of_another_batch_size_is_as_exact(form):
    cell = fast.conv2d(3)
    for batch in (3, 1, 2):
        x, weight, bias, g = arrays(batch, 5, 7, 4, 4)
        got = cell(Tensor(x), Tensor(weight), Tensor(bias)).asnumpy()
        np.testing.assert_allclose(
            got, convolution(x, weight, 1, 1, (5, 7), g)[0] + bias, atol=1e-5
        )


@pytest.mark.parametrize(("kernel", "stride", "pads"), CONVOLUTIONS)
def test_a_convolution_of_no_images_has_gradients_of_zero(form, kernel, stride, pads):
    rows, columns = ((n + sum(pads) - kernel) // stride + 1 for n in (6, 8))
    x, g = np.zeros((0, 6, 8, 3), np.float32), np.zeros((0, rows, columns, 5), np.float32)
    weight, bias = np.ones((5, kernel, kernel, 3), np.float32), np.ones(5, np.float32)
    cell = fast.conv2d(kernel, stride, pads)
    assert cell(Tensor(x), Tensor(weight), Tensor(bias)).shape == g.shape
    for array, gradient in zip((x, weight, bias), gradients(cell, g, x, weight, bias), strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(array), strict=True)


def test_a_convolution_in_chunks_equals_one_in_one_piece(monkeypatch):
    monkeypatch.setattr(fast, "_kernels", ABSENT)
    cell, (*parameters, _) = fast.conv2d(3), map(Tensor, arrays(1, 16, 16, 4, 4))
    whole = cell(*parameters).asnumpy()
    monkeypatch.setattr(fast, "_MAX_COLUMNS", 3000)
    np.testing.assert_allclose(cell(*parameters).asnumpy(), whole, atol=1e-5)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 3, 16), (1, 20, 30, 8), (5, 1, 1, 20)])
def test_group_norm_equals_its_definition_and_its_gradient_a_finite_difference(form, shape, silu):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(np.float32) * 3 + 1
    gain, bias = rng.standard_normal((2, shape[3])).astype(np.float32)
    g = rng.standard_normal(x.shape).astype(np.float32)
    cell = fast.group_norm(4, silu=silu)
    got = cell(Tensor(x), Tensor(gain), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(got, group_norm(x, gain, bias, 4, silu), atol=1e-5)
    arguments = [a.astype(np.float64) for a in (x, gain, bias)]
    for i, grad in enumerate(gradients(cell, g, x, gain, bias)):
        direction = rng.standard_normal(arguments[i].shape)
        step = [a + (1e-5 * direction if j == i else 0) for j, a in enumerate(arguments)]
        back = [a - (1e-5 * direction if j == i else 0) for j, a in enumerate(arguments)]
        difference = group_norm(*step, 4, silu) - group_norm(*back, 4, silu)
        slope = (difference * g).sum() / 2e-5
        assert (grad * direction).sum() == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_group_norm_keeps_its_digits_far_from_zero(form):
    x = 1000 + np.random.default_rng(6).standard_normal((1, 16, 16, 8)).astype(np.float32)
    gain, bias = np.ones(8, np.float32), np.zeros(8, np.float32)
    got = fast.group_norm(4)(Tensor(x), Tensor(gain), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(got, group_norm(x, gain, bias, 4, False), atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -31234.567, 3e-7])
def test_group_norm_of_equal_pixels_is_its_bias_and_its_gradient_is_finite(form, value):
    x = np.full((2, 20, 30, 12), value, np.float32)
    gain, bias = np.random.default_rng(9).standard_normal((2, 12)).astype(np.float32)
    cell, with_silu = fast.group_norm(4), fast.group_norm(4, silu=True)
    got = cell(Tensor(x), Tensor(gain), Tensor(bias)).asnumpy()
    np.testing.assert_array_equal(got, np.broadcast_to(bias, got.shape))
    got = with_silu(Tensor(x), Tensor(gain), Tensor(bias)).asnumpy()
    wide = bias.astype(np.float64)
    expected = np.broadcast_to(wide / (1 + np.exp(-wide)), got.shape)
    np.testing.assert_allclose(got, expected, 1e-6, 1e-6)
    grad_x, grad_gain, grad_bias = gradients(cell, np.ones_like(x), x, gain, bias)
    np.testing.assert_array_equal(grad_gain, 0)
    np.testing.assert_allclose(grad_bias, 1200, 1e-5)
    assert np.isfinite(grad_x).all()


# maps large enough for Winograd's way, whose tiles of 4x4 fit or hang over; channels in vectors of
# 16, results in blocks of 32, or neither
SHAPES = [(1, 24, 24, 16, 32), (2, 17, 23, 32, 64), (3, 13, 19, 48, 32), (33, 3, 5, 32, 32)]
SHAPES += [(2, 18, 22, 20, 32), (2, 18, 22, 32, 16), (600, 1, 1, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_3x3_convolution_of_a_large_map_and_its_gradients_equal_their_definition(form, shape):
    x, weight, bias, plus = arrays(*shape)
    out, grad_x, grad_weight = convolution(x, weight, 1, 1, shape[1:3], plus)
    got = fast.conv2d(3)(Tensor(x), Tensor(weight), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(got, out + bias, atol=2e-5)
    assert np.sqrt(((got - out - bias) ** 2).mean()) < 3e-6
    cell = fast.conv2d_plus(3)
    got = cell(Tensor(x), Tensor(weight), Tensor(bias), Tensor(plus)).asnumpy()
    np.testing.assert_allclose(got, out + bias + plus, atol=2e-5)
    dx, dw, db, dplus = gradients(cell, plus, x, weight, bias, plus)
    np.testing.assert_allclose(dx, grad_x, atol=2e-5)
    np.testing.assert_allclose(dw, grad_weight, atol=3e-4)
    np.testing.assert_allclose(db, plus.sum((0, 1, 2), dtype=np.float64), atol=3e-4)
    np.testing.assert_array_equal(dplus, plus)


@pytest.mark.parametrize("shape", [(2, 2, 3, 5, 5), (1, 13, 11, 32, 32), (2, 9, 14, 16, 32)])
def test_an_upsampled_convolution_is_the_convolution_of_the_repeated_pixels(form, shape):
    b, y, across, c, o = shape
    x, weight, bias, _ = arrays(*shape)
    *_, g = arrays(b, 2 * y, 2 * across, c, o)
    fused, conv = fast.conv2d(3, upsampled=True), fast.conv2d(3)
    repeated = x.repeat(2, 1).repeat(2, 2)
    got, expected = (
        cell(Tensor(a), Tensor(weight), Tensor(bias)).asnumpy()
        for cell, a in ((fused, x), (conv, repeated))
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)
    dx, *grads = gradients(fused, g, x, weight, bias)
    wide, *rest = gradients(conv, g, repeated, weight, bias)
    np.testing.assert_allclose(dx, wide.reshape(b, y, 2, across, 2, c).sum((2, 4)), atol=2e-5)
    for grad, wanted in zip(grads, rest, strict=True):
        np.testing.assert_allclose(grad, wanted, atol=2e-4)


@pytest.mark.parametrize(("vectors", "codes", "width"), [(7, 50, 8), (64, 128, 32), (1, 1, 3)])
def test_the_nearest_code_is_the_one_at_the_smallest_distance(form, vectors, codes, width):
    rng = np.random.default_rng(7)
    v, book = rng.standard_normal((vectors, width)), rng.standard_normal((codes, width))
    expected = ((v[:, None] - book) ** 2).sum(-1).argmin(1)
    got = fast.nearest_code()(Tensor(v.astype(np.float32)), Tensor(book.astype(np.float32)))
    np.testing.assert_array_equal(got.asnumpy(), expected)


def test_the_first_of_equally_near_codes_is_taken(form):
    book = np.tile(np.eye(4, dtype=np.float32), (20, 1))
    got = fast.nearest_code()(Tensor(np.eye(4, dtype=np.float32)), Tensor(book))
    np.testing.assert_array_equal(got.asnumpy(), [0, 1, 2, 3])
