import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from var_tokenizer import ops as fast


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


CONVOLUTIONS = [(1, 1, (0, 0)), (3, 1, (1, 1)), (3, 2, (0, 1)), (4, 2, (1, 1))]


@pytest.mark.parametrize(("kernel", "stride", "pads"), CONVOLUTIONS)
def test_a_convolution_equals_its_definition(kernel, stride, pads):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 8, 3)).astype(np.float32)
    weight = rng.standard_normal((5, kernel, kernel, 3)).astype(np.float32)
    got = fast.conv2d(kernel, stride, pads)(Tensor(x), Tensor(weight)).asnumpy()
    np.testing.assert_allclose(got, reference_conv(x, weight, stride, pads), atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "pads"), CONVOLUTIONS)
def test_the_gradient_of_a_convolution_is_its_transpose(kernel, stride, pads):
    # a convolution is linear in x and in the weight: <conv(x', w'), g> = <x', dx> = <w', dw>
    rng = np.random.default_rng(1)
    x, x2 = rng.standard_normal((2, 2, 6, 8, 3)).astype(np.float32)
    weight, weight2 = rng.standard_normal((2, 5, kernel, kernel, 3)).astype(np.float32)
    g = rng.standard_normal(reference_conv(x, weight, stride, pads).shape).astype(np.float32)
    cell = fast.conv2d(kernel, stride, pads)

    def product(x_byxc, weight_ohwi, g_byxo):
        return (cell(x_byxc, weight_ohwi) * g_byxo).sum()

    dx, dw = ms.grad(product, (0, 1))(Tensor(x), Tensor(weight), Tensor(g))
    through_x = (reference_conv(x2, weight, stride, pads) * g).sum()
    through_w = (reference_conv(x, weight2, stride, pads) * g).sum()
    assert (dx.asnumpy() * x2).sum() == pytest.approx(through_x, rel=1e-4)
    assert (dw.asnumpy() * weight2).sum() == pytest.approx(through_w, rel=1e-4)


def test_a_convolution_in_chunks_equals_one_in_one_piece(monkeypatch):
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((1, 16, 16, 4)), rng.standard_normal((4, 3, 3, 4))
    x, weight = Tensor(x.astype(np.float32)), Tensor(weight.astype(np.float32))
    cell = fast.conv2d(3)
    whole = cell(x, weight).asnumpy()
    monkeypatch.setattr(fast, "_MAX_COLUMNS", 3000)
    np.testing.assert_allclose(cell(x, weight).asnumpy(), whole, atol=1e-5)


def normalized(x_byxc, gain, bias, groups):
    b, y, x, c = x_byxc.shape
    parts = x_byxc.astype(np.float64).reshape(b, y * x, groups, c // groups)
    mean, std = parts.mean((1, 3), keepdims=True), parts.std((1, 3), keepdims=True)
    return ((parts - mean) / np.sqrt(std**2 + 1e-6)).reshape(b, y, x, c) * gain + bias


def test_group_norm_equals_its_definition_and_its_gradient_a_finite_difference():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 4, 3, 16)).astype(np.float32) * 3 + 1
    gain, bias = rng.standard_normal((2, 16)).astype(np.float32)
    g = rng.standard_normal(x.shape).astype(np.float32)
    cell = fast.group_norm(4)
    got = cell(Tensor(x), Tensor(gain), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(got, normalized(x, gain, bias, 4), atol=1e-5)

    def product(x_byxc, gain_c, bias_c):
        return (cell(x_byxc, gain_c, bias_c) * Tensor(g)).sum()

    grads = ms.grad(product, (0, 1, 2))(Tensor(x), Tensor(gain), Tensor(bias))
    arguments = [a.astype(np.float64) for a in (x, gain, bias)]
    for i, grad in enumerate(grads):
        direction = rng.standard_normal(arguments[i].shape)
        step = [a + (1e-5 * direction if j == i else 0) for j, a in enumerate(arguments)]
        back = [a - (1e-5 * direction if j == i else 0) for j, a in enumerate(arguments)]
        slope = ((normalized(*step, 4) - normalized(*back, 4)) * g).sum() / 2e-5
        assert (grad.asnumpy() * direction).sum() == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_nearest_upsampling_repeats_every_pixel_twice_each_way():
    x = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)
    got = fast.UpsampleNearest()(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(got, x.repeat(2, 1).repeat(2, 2))
