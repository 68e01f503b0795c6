"""What the forms of an Ascend compute, with models of its operators in their places."""

import mindspore as ms
import numpy as np
import pytest
import tiny
from definitions import convolution
from mindspore import Tensor, mint, ops
from var_tokenizer import Tokenizer, layout, operators

SCALES = (1, 2, (3, 4))
CONFIG = tiny.tokenizer(scales=SCALES, vocab_size=128)


# ---------------------------------------------------------------- operators of an Ascend
def conv2d(x_bcyx, weight_oihw, bias_o, stride, padding):
    return ops.conv2d(x_bcyx, weight_oihw, bias_o, stride, "pad", padding)


def interpolate(x_bcyx, size, mode):
    b, c, y, x = x_bcyx.shape
    pixels = ops.tile(x_bcyx.reshape(b, c, y, 1, x, 1), (1, 1, 1, 2, 1, 2))
    return pixels.reshape(b, c, size[0], size[1])


def pad(x, pads):
    return ops.pad(x, pads)


def silu(x):
    return x * ops.sigmoid(x)


def linear(x, weight, bias):
    return ops.MatMul(transpose_b=True)(x, weight) + bias


def index_select(table, axis, index):
    return ops.gather(table, index, axis)


def argmin(x, axis):
    return ops.Argmin(axis)(x)


def mean(x):
    return x.mean()


def split(x, sizes, axis):
    return ops.split(x, sizes, axis)


@pytest.fixture
def ascend(monkeypatch):
    for module in (layout, operators):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    for form in (conv2d, interpolate, pad, silu, linear):
        monkeypatch.setattr(mint.nn.functional, form.__name__, form)
    for form in (argmin, index_select, mean, split):
        monkeypatch.setattr(mint, form.__name__, form)


# ---------------------------------------------------------------- the whole tokenizer
def results(tokenizer: Tokenizer) -> list[np.ndarray]:
    """What it gives for images, and in training, with gradients."""
    rng = np.random.default_rng(1)
    rows, columns = tokenizer.config.image_size
    images_bcyx = rng.uniform(-1, 1, (2, 3, rows, columns)).astype(np.float32)
    ids = tokenizer.encode(images_bcyx)
    found = [*ids, tokenizer.decode(ids), *tokenizer.decode_progressive(ids)]
    found.append(tokenizer.teacher_inputs(ids))
    latent = None
    for k, ids_bl in enumerate(ids):
        latent = tokenizer.add_scale(latent, ids_bl, k)
        found.append(tokenizer.scale_input(latent, k))
    mixed = rng.dirichlet(np.ones(CONFIG.vocab_size), (2, 2 * 2)).astype(np.float32)
    found += [latent, tokenizer.decode_latent(latent), tokenizer.add_scale(latent, mixed, 1)]
    images_byxc = Tensor(np.ascontiguousarray(images_bcyx.transpose(0, 2, 3, 1)))
    kept_kb = Tensor(np.array([[1, 1], [1, 1], [1, 0]], np.float32))

    def loss(images):
        features, quantization, _, _ = tokenizer(images, 0.25, kept_kb)
        error = tokenizer.reconstruction(features) - images
        return (error * error).mean() + quantization

    gradients_of = ms.value_and_grad(loss, None, tokenizer.trainable_params())

    @ms.jit
    def step(images):
        return gradients_of(images)

    value, gradients = step(images_byxc)
    return [np.asarray(array) for array in (*found, value, *gradients)]


def test_the_tokenizer_of_an_ascend_gives_what_that_of_a_cpu_gives(request):
    expected = results(Tokenizer(CONFIG))
    request.getfixturevalue("ascend")
    got = results(Tokenizer(CONFIG))
    for array, wanted in zip(got, expected, strict=True):
        if wanted.dtype.kind == "i":
            np.testing.assert_array_equal(array, wanted)
        else:
            # a bias before a norm has a gradient of 0, and both give what is left of rounding
            np.testing.assert_allclose(array, wanted, 0, 1e-7 + 2e-5 * np.abs(wanted).max())


CONVOLUTIONS = [(1, 1, (0, 0)), (3, 1, (1, 1)), (3, 2, (0, 1)), (3, 2, (1, 0)), (4, 2, (1, 1))]


@pytest.mark.parametrize(("kernel", "stride", "pads"), CONVOLUTIONS)
def test_a_convolution_of_an_ascend_needs_no_padded_map(ascend, kernel, stride, pads):
    rng = np.random.default_rng(2)
    size = [(n + sum(pads) - kernel) // stride + 1 for n in (6, 8)]
    x, weight, g = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((2, 6, 8, 3), (5, kernel, kernel, 3), (2, *size, 5))
    )
    maps, conv, pixels = layout.maps(), operators.conv2d(kernel, stride, pads), layout.pixels()

    def product(x, weight):
        out = pixels(conv(maps(x), weight, Tensor(np.zeros(5, np.float32))))
        return (out * Tensor(g)).sum(), out

    (grad_x, grad_weight), out = ms.grad(product, (0, 1), has_aux=True)(Tensor(x), Tensor(weight))
    expected = convolution(x, weight, stride, pads[0], size, g)
    for array, wanted in zip((out[0], grad_x, grad_weight), expected, strict=True):
        np.testing.assert_allclose(array.asnumpy(), wanted, atol=1e-4)
