import logging

import mindspore as ms
import numpy as np
import pytest
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
        cells = [fast.conv2d(3), fast.group_norm(4), fast.nearest_code()]
        cells += [fast.conv2d_plus(3), fast.upsampled_conv2d()]
    assert not [type(cell) for cell in cells if "Kernel" in type(cell).__name__]
    assert [r.levelname for r in caplog.records] == ["INFO"]


def reference_conv(x_byxc, weight_ohwi, stride, pads):
    """The definition, tap by tap, in float64."""
    k = weight_ohwi.shape[1]
    padded = np.pad(x_byxc.astype(np.float64), ((0, 0), pads, pads, (0, 0)))
    rows = (padded.shape[1] - k) // stride + 1
    columns = (padded.shape[2] - k) // stride + 1
    out = 0
    for i in range(k):
        for j in range(k):
            part = padded[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
            out = out + part[:, :rows, :columns] @ weight_ohwi[:, i, j].T
    return out


CONVOLUTIONS = [(1, 1, (0, 0)), (3, 1, (1, 1)), (3, 2, (0, 1)), (4, 2, (1, 1)), (1, 2, (0, 0))]
CHANNELS = [(3, 5), (16, 32), (20, 3)]


@pytest.mark.parametrize(("inputs", "outputs"), CHANNELS)
@pytest.mark.parametrize(("kernel", "stride", "pads"), CONVOLUTIONS)
def test_a_convolution_equals_its_definition(form, kernel, stride, pads, inputs, outputs):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 8, inputs)).astype(np.float32)
    weight = rng.standard_normal((outputs, kernel, kernel, inputs)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    got = fast.conv2d(kernel, stride, pads)(Tensor(x), Tensor(weight), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(got, reference_conv(x, weight, stride, pads) + bias, atol=3e-5)


@pytest.mark.parametrize(("inputs", "outputs"), CHANNELS)
@pytest.mark.parametrize(("kernel", "stride", "pads"), CONVOLUTIONS)
def test_the_gradient_of_a_convolution_is_its_transpose(
    form, kernel, stride, pads, inputs, outputs
):
    # a convolution is linear in x and in the weight: <conv(x', w'), g> = <x', dx> = <w', dw>
    rng = np.random.default_rng(1)
    x, x2 = rng.standard_normal((2, 2, 6, 8, inputs)).astype(np.float32)
    weight, weight2 = rng.standard_normal((2, outputs, kernel, kernel, inputs)).astype(np.float32)
    bias = np.zeros(outputs, np.float32)
    g = rng.standard_normal(reference_conv(x, weight, stride, pads).shape).astype(np.float32)
    cell = fast.conv2d(kernel, stride, pads)

    def product(x_byxc, weight_ohwi, bias_o, g_byxo):
        return (cell(x_byxc, weight_ohwi, bias_o) * g_byxo).sum()

    arguments = (Tensor(x), Tensor(weight), Tensor(bias), Tensor(g))
    dx, dw, db = ms.grad(product, (0, 1, 2))(*arguments)
    through_x = (reference_conv(x2, weight, stride, pads) * g).sum()
    through_w = (reference_conv(x, weight2, stride, pads) * g).sum()
    assert (dx.asnumpy() * x2).sum() == pytest.approx(through_x, rel=1e-4, abs=1e-3)
    assert (dw.asnumpy() * weight2).sum() == pytest.approx(through_w, rel=1e-4, abs=1e-3)
    np.testing.assert_allclose(db.asnumpy(), g.sum((0, 1, 2)), atol=1e-4)


def test_a_convolution_of_another_batch_size_is_as_exact(form):
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((4, 3, 3, 4)).astype(np.float32)
    cell, bias = fast.conv2d(3), np.zeros(4, np.float32)
    for batch in (3, 1, 2):
        x = rng.standard_normal((batch, 5, 7, 4)).astype(np.float32)
        got = cell(Tensor(x), Tensor(weight), Tensor(bias)).asnumpy()
        np.testing.assert_allclose(got, reference_conv(x, weight, 1, (1, 1)), atol=1e-5)


def test_a_convolution_in_chunks_equals_one_in_one_piece(monkeypatch):
    monkeypatch.setattr(fast, "_kernels", ABSENT)
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((1, 16, 16, 4)), rng.standard_normal((4, 3, 3, 4))
    x, weight = Tensor(x.astype(np.float32)), Tensor(weight.astype(np.float32))
    cell, bias = fast.conv2d(3), Tensor(np.zeros(4, np.float32))
    whole = cell(x, weight, bias).asnumpy()
    monkeypatch.setattr(fast, "_MAX_COLUMNS", 3000)
    np.testing.assert_allclose(cell(x, weight, bias).asnumpy(), whole, atol=1e-5)


def normalized(x_byxc, gain, bias, groups, silu):
    b, y, x, c = x_byxc.shape
    parts = x_byxc.astype(np.float64).reshape(b, y * x, groups, c // groups)
    mean, std = parts.mean((1, 3), keepdims=True), parts.std((1, 3), keepdims=True)
    out = ((parts - mean) / np.sqrt(std**2 + 1e-6)).reshape(b, y, x, c) * gain + bias
    return out / (1 + np.exp(-out)) if silu else out


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 3, 16), (1, 20, 30, 8), (5, 1, 1, 20)])
def test_group_norm_equals_its_definition_and_its_gradient_a_finite_difference(form, shape, silu):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(np.float32) * 3 + 1
    gain, bias = rng.standard_normal((2, shape[3])).astype(np.float32)
    g = rng.standard_normal(x.shape).astype(np.float32)
    cell = fast.group_norm(4, silu=silu)
    got = cell(Tensor(x), Tensor(gain), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(got, normalized(x, gain, bias, 4, silu), atol=1e-5)

    def product(x_byxc, gain_c, bias_c):
        return (cell(x_byxc, gain_c, bias_c) * Tensor(g)).sum()

    grads = ms.grad(product, (0, 1, 2))(Tensor(x), Tensor(gain), Tensor(bias))
    arguments = [a.astype(np.float64) for a in (x, gain, bias)]
    for i, grad in enumerate(grads):
        direction = rng.standard_normal(arguments[i].shape)
        step = [a + (1e-5 * direction if j == i else 0) for j, a in enumerate(arguments)]
        back = [a - (1e-5 * direction if j == i else 0) for j, a in enumerate(arguments)]
        difference = normalized(*step, 4, silu) - normalized(*back, 4, silu)
        slope = (difference * g).sum() / 2e-5
        assert (grad.asnumpy() * direction).sum() == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_group_norm_keeps_its_digits_far_from_zero(form):
    x = 1000 + np.random.default_rng(6).standard_normal((1, 16, 16, 8)).astype(np.float32)
    gain, bias = np.ones(8, np.float32), np.zeros(8, np.float32)
    got = fast.group_norm(4)(Tensor(x), Tensor(gain), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(got, normalized(x, gain, bias, 4, False), atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -31234.567])
def test_group_norm_of_equal_pixels_is_its_bias_and_its_gradient_is_finite(form, value):
    x = Tensor(np.full((2, 20, 30, 12), value, np.float32))
    gain, bias = np.random.default_rng(9).standard_normal((2, 12)).astype(np.float32)
    cell = fast.group_norm(4)
    got = cell(x, Tensor(gain), Tensor(bias)).asnumpy()
    np.testing.assert_array_equal(got, np.broadcast_to(bias, got.shape))
    grads = ms.grad(lambda *a: cell(*a).sum(), (0, 1, 2))(x, Tensor(gain), Tensor(bias))
    np.testing.assert_array_equal(grads[1].asnumpy(), 0)
    np.testing.assert_allclose(grads[2].asnumpy(), 1200, 1e-5)
    assert np.isfinite(grads[0].asnumpy()).all()


# maps large enough for Winograd's way, whose tiles of 4x4 fit or hang over; channels in vectors of
# 16, results in blocks of 32, or neither
SHAPES = [(1, 24, 24, 16, 32), (2, 17, 23, 32, 64), (3, 13, 19, 48, 32), (33, 3, 5, 32, 32)]
SHAPES += [(2, 18, 22, 20, 32), (2, 18, 22, 32, 16), (600, 1, 1, 32, 32)]


def arrays(b, y, x, c, o, seed=8):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((o, 3, 3, c)) / (3 * np.sqrt(c))
    shapes = (b, y, x, c), (o,), (b, y, x, o)
    x, bias, plus = (rng.standard_normal(shape) for shape in shapes)
    return [a.astype(np.float32) for a in (x, weight, bias, plus)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_3x3_convolution_of_a_large_map_equals_its_definition_whatever_is_added(form, shape):
    x, weight, bias, plus = arrays(*shape)
    expected = reference_conv(x, weight, 1, (1, 1)) + bias
    got = fast.conv2d(3)(Tensor(x), Tensor(weight), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert np.sqrt(((got - expected) ** 2).mean()) < 3e-6
    got = fast.conv2d_plus(3)(Tensor(x), Tensor(weight), Tensor(bias), Tensor(plus)).asnumpy()
    np.testing.assert_allclose(got, expected + plus, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_of_a_3x3_convolution_of_a_large_map_equal_their_definition(form, shape):
    x, weight, bias, g = arrays(*shape)
    y, across = shape[1:3]
    cell = fast.conv2d_plus(3)

    def product(x_byxc, weight_ohwi, bias_o, plus_byxo):
        return (cell(x_byxc, weight_ohwi, bias_o, plus_byxo) * Tensor(g)).sum()

    arguments = (Tensor(x), Tensor(weight), Tensor(bias), Tensor(g))
    dx, dw, db, dplus = (d.asnumpy() for d in ms.grad(product, (0, 1, 2, 3))(*arguments))
    turned = weight[:, ::-1, ::-1].transpose(3, 1, 2, 0)
    np.testing.assert_allclose(dx, reference_conv(g, turned, 1, (1, 1)), atol=2e-5)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i in range(3):
        for j in range(3):
            tap = np.einsum("byxc,byxo->oc", padded[:, i : i + y, j : j + across], g, optimize=True)
            np.testing.assert_allclose(dw[:, i, j], tap, atol=3e-4)
    np.testing.assert_allclose(db, g.sum((0, 1, 2), dtype=np.float64), atol=3e-4)
    np.testing.assert_array_equal(dplus, g)


@pytest.mark.parametrize("shape", [(2, 2, 3, 5, 5), (1, 13, 11, 32, 32), (2, 9, 14, 16, 32)])
def test_an_upsampled_convolution_is_the_convolution_of_the_repeated_pixels(form, shape):
    b, y, across, c, o = shape
    x, weight, bias, _ = arrays(*shape)
    *_, g = arrays(b, 2 * y, 2 * across, c, o)
    fused, conv = fast.upsampled_conv2d(), fast.conv2d(3)

    def product(cell, x_byxc, weight_ohwi, bias_o):
        return (cell(x_byxc, weight_ohwi, bias_o) * Tensor(g)).sum()

    repeated = x.repeat(2, 1).repeat(2, 2)
    parameters = Tensor(weight), Tensor(bias)
    expected = conv(Tensor(repeated), *parameters).asnumpy()
    np.testing.assert_allclose(fused(Tensor(x), *parameters).asnumpy(), expected, atol=1e-5)
    dx, dw, db = ms.grad(lambda *a: product(fused, *a), (0, 1, 2))(Tensor(x), *parameters)
    wide, *rest = ms.grad(lambda *a: product(conv, *a), (0, 1, 2))(Tensor(repeated), *parameters)
    summed = wide.asnumpy().reshape(b, y, 2, across, 2, c).sum((2, 4))
    np.testing.assert_allclose(dx.asnumpy(), summed, atol=2e-5)
    for got, wanted in zip((dw, db), rest, strict=True):
        np.testing.assert_allclose(got.asnumpy(), wanted.asnumpy(), atol=2e-4)


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
