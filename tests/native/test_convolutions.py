"""The convolution kernels, forward and backward, against the definition in float64."""

from itertools import product

import numpy as np
import pytest
from definitions import convolution
from hypothesis import given, settings
from hypothesis import strategies as st


def check(run, kernel, stride, pads, x_byxc, outputs, upsampled=False, seed=0):
    """Holds all four kernels against the definition, for zeros ``pads`` = (before, after)."""
    rng = np.random.default_rng(seed)
    b, y, x, c = x_byxc
    times = 2 if upsampled else 1
    size = tuple((n * times + sum(pads) - kernel) // stride + 1 for n in (y, x))
    shapes = x_byxc, (outputs, kernel, kernel, c), (outputs,), *((b, *size, outputs),) * 2
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    x_byxc, weight, bias, plus, grad = inputs
    full = x_byxc.repeat(times, 1).repeat(times, 2)
    out, grad_x, grad_weight = convolution(full, weight, stride, pads[0], size, grad)
    if upsampled:
        grad_x = grad_x.reshape(b, y, 2, x, 2, c).sum((2, 4))

    geometry = np.array([stride, pads[0], upsampled], np.int32)
    got = [np.full(shape, np.nan, np.float32) for shape in (out.shape, out.shape, (b, y, x, c))]
    got += [np.full(weight.shape, np.nan, np.float32), np.full(outputs, np.nan, np.float32)]
    assert run("conv2d", x_byxc, weight, bias, geometry, got[0]) == 0
    assert run("conv2d_plus", x_byxc, weight, bias, plus, geometry, got[1]) == 0
    assert run("conv2d_grad_x", grad, weight, x_byxc, geometry, got[2]) == 0
    assert run("conv2d_grad_weight", grad, x_byxc, weight, geometry, got[3], got[4]) == 0
    wanted = out + bias, out + bias + plus, grad_x, grad_weight, grad.sum((0, 1, 2), np.float64)
    names = "result", "result plus", "gradient of x", "of the weight", "of the bias"
    case = f"kernel {kernel}, stride {stride}, pads {pads}, x {(b, y, x, c)} -> {size}, {outputs}"
    for name, a, e in zip(names, got, wanted, strict=True):
        # of sums of up to n products of normal numbers; Winograd's errors are 5 times a sum's
        terms = max(kernel**2 * max(c, outputs), b * size[0] * size[1])
        np.testing.assert_allclose(a, e, 0, 1e-5 * max(1, terms**0.5), err_msg=f"{name}: {case}")


KERNELS = [(k, s) for k in (1, 2, 3, 4, 5) for s in (1, 2, 3, 4)]
SIDES = [(4, 6), (5, 7), (8, 16)]
CHANNELS = [(1, 1), (3, 8), (4, 32), (5, 16)]


@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_convolutions_follow_the_definition_for_every_kernel_stride_padding_and_size(
    run, kernel, stride
):
    pads = product((0, 1, kernel), (0, 1))
    for (before, after), (y, x), (c, o) in product(pads, SIDES, CHANNELS):
        if min(y, x) + before + after >= kernel:
            check(run, kernel, stride, (before, after), (2, y, x, c), o)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(
    kernel=st.integers(1, 7),
    stride=st.integers(1, 5),
    pads=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    x_byxc=st.tuples(*(st.integers(1, n) for n in (3, 24, 24, 40))),
    outputs=st.integers(1, 70),
    seed=st.integers(0, 999),
)
def test_convolutions_of_any_size_follow_the_definition(
    run, kernel, stride, pads, x_byxc, outputs, seed
):
    if min(x_byxc[1:3]) + sum(pads) >= kernel:
        check(run, kernel, stride, pads, x_byxc, outputs, seed=seed)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    upsampled=st.booleans(),
    x_byxc=st.tuples(*(st.integers(1, n) for n in (3, 20, 20)), st.sampled_from((16, 32, 48))),
    outputs=st.sampled_from((16, 32, 64, 33)),
    seed=st.integers(0, 999),
)
def test_3x3_convolutions_of_whole_vectors_follow_the_definition(
    run, upsampled, x_byxc, outputs, seed
):
    check(run, 3, 1, (1, 1), x_byxc, outputs, upsampled, seed)
