"""The kernels on empty arrays, on zeros, and on arrays that they refuse."""

import numpy as np
import pytest


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int32)


def unwritten(*shape):
    return np.full(shape, np.nan, np.float32)


GEOMETRY = ints(1, 0, 0)  # stride 1, no zeros around
NORM = ints(4), np.array([1e-6], np.float32)  # groups, epsilon
BIAS = floats(8, seed=1)

# kernel, its inputs, and the shape and values of each output
EMPTY = [
    *(
        (name, (x, weight, bias, *plus, GEOMETRY), [(shape, expected)])
        for x, weight, bias, shape, expected in (
            (floats(0, 4, 5, 3), floats(8, 1, 1, 3), BIAS, (0, 4, 5, 8), 0),
            (floats(2, 0, 5, 3), floats(8, 1, 1, 3), BIAS, (2, 0, 5, 8), 0),
            (floats(2, 4, 5, 0), floats(8, 1, 1, 0), BIAS, (2, 4, 5, 8), BIAS),
            (floats(2, 4, 5, 3), floats(0, 1, 1, 3), floats(0), (2, 4, 5, 0), 0),
        )
        for name, plus in (("conv2d", ()), ("conv2d_plus", (np.zeros(shape, np.float32),)))
    ),
    *(
        ("conv2d_grad_x", (grad, weight, x, GEOMETRY), [(x.shape, 0)])
        for grad, weight, x in (
            (floats(0, 4, 5, 8), floats(8, 1, 1, 3), floats(0, 4, 5, 3)),
            (floats(2, 4, 5, 0), floats(0, 1, 1, 3), floats(2, 4, 5, 3)),
            (floats(2, 4, 5, 8), floats(8, 1, 1, 0), floats(2, 4, 5, 0)),
        )
    ),
    *(
        ("conv2d_grad_weight", (grad, x, weight, GEOMETRY), [(weight.shape, 0), (bias.shape, bias)])
        for grad, x, weight, bias in (
            (floats(0, 4, 5, 8), floats(0, 4, 5, 3), floats(8, 1, 1, 3), np.zeros(8)),
            (floats(0, 8, 8, 32), floats(0, 8, 8, 16), floats(32, 1, 1, 16), np.zeros(32)),
            (floats(2, 0, 5, 8), floats(2, 0, 5, 3), floats(8, 1, 1, 3), np.zeros(8)),
            (floats(2, 4, 5, 0), floats(2, 4, 5, 3), floats(0, 1, 1, 3), np.zeros(0)),
            (np.ones((2, 4, 5, 8), "f4"), floats(2, 4, 5, 0), floats(8, 1, 1, 0), np.full(8, 40)),
        )
    ),
    *(
        call
        for silu in ("", "_silu")
        for shape in ((0, 4, 5, 8), (2, 0, 5, 8), (2, 4, 0, 8))
        for x in (floats(*shape),)
        for y in [(shape, 0)]
        for call in (
            (f"group_norm{silu}", (x, BIAS, BIAS, *NORM), [y]),
            (f"group_norm{silu}_grad", (x, x, BIAS, BIAS, *NORM), [y, ((8,), 0), ((8,), 0)]),
        )
    ),
    ("sum_of_squares", (floats(0, 7),), [((1,), 0)]),
    ("gelu", (floats(2, 0),), [((2, 0), 0)]),
    ("gelu_grad", (floats(2, 0), floats(2, 0)), [((2, 0), 0)]),
    *(
        call
        for b, length, c in ((0, 5, 6), (2, 0, 6), (2, 5, 0))
        for x in (floats(b, length, c),)
        for one in (floats(b, 1, c),)
        for call in (
            ("modulated_norm", (x, one, one), [(x.shape, 0)]),
            ("modulated_norm_grad", (x, x, one), [(x.shape, 0), (one.shape, 0), (one.shape, 0)]),
            ("gated_sum", (x, x, one), [(x.shape, 0)]),
            ("gated_sum_grad", (x, x, one), [(x.shape, 0), (one.shape, 0)]),
        )
    ),
    *(
        ("linear", (floats(rows, depth), floats(outputs, depth), bias), [((rows, outputs), bias)])
        for rows, depth, outputs in ((0, 5, 8), (3, 0, 8), (50, 0, 8), (3, 5, 0), (50, 5, 0))
        for bias in (BIAS[:outputs],)
    ),
    *(
        (
            "linear_grad",
            (grad, floats(rows, depth), floats(outputs, depth)),
            [((rows, depth), 0), ((outputs, depth), 0), ((outputs,), grad.sum(0))],
        )
        for rows, depth, outputs in ((0, 5, 8), (3, 0, 8), (3, 5, 0), (0, 0, 0), (50, 5, 0))
        for grad in (floats(rows, outputs),)
    ),
    *(
        call
        for b, length in ((0, 5), (2, 0))
        for qkv in (floats(b, length, 96),)
        for mixed, logs in ((floats(b, length, 32), floats(b, 2, length)),)
        for settings in ((ints(0, 1, 5), ints(1)),)
        for call in (
            (
                "next_scale_attention",
                (qkv, floats(2), *settings),
                [(mixed.shape, 0), (logs.shape, 0)],
            ),
            (
                "next_scale_attention_grad",
                (mixed, qkv, floats(2), *settings, logs),
                [(qkv.shape, 0), ((2,), 0)],
            ),
            (
                "cached_attention",
                (qkv, floats(2), ints(0), ints(1), floats(b, 2, 16, 16), floats(b, 2, 5, 16)),
                [(mixed.shape, 0)],
            ),
        )
    ),
]


@pytest.mark.parametrize(("name", "inputs", "outputs"), EMPTY)
def test_kernels_write_every_output_where_an_input_is_empty(run, name, inputs, outputs):
    got = [unwritten(*shape) for shape, _ in outputs]
    assert run(name, *map(np.ascontiguousarray, inputs), *got) == 0
    for array, (shape, expected) in zip(got, outputs, strict=True):
        np.testing.assert_array_equal(array, np.broadcast_to(np.float32(expected), shape))


def test_nearest_code_takes_no_vectors_and_refuses_an_empty_codebook(run):
    assert run("nearest_code", floats(0, 4), floats(3, 4), ints()) == 0
    assert run("nearest_code", floats(3, 4), floats(0, 4), ints(7, 7, 7)) == 3


def test_adamw_takes_an_empty_parameter(run):
    scalars, decays = np.array([0.1, 1e-8, 0.1], np.float32), np.array([0.9, 0.99], np.float32)
    empty = [floats(0) for _ in range(4)]
    one, yes = np.array(1, np.float32), np.array(True)
    assert run("adamw", *empty, one, yes, scalars, decays) == 0


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -31234.567, 3e-7])
@pytest.mark.parametrize("width", [1, 5, 30, 768])
def test_the_layer_norm_of_equal_numbers_is_zero(run, value, width):
    x, scale = np.full((2, 19, width), value, np.float32), floats(2, 1, width)
    shift, y = floats(2, 1, width, seed=2), unwritten(2, 19, width)
    assert run("modulated_norm", x, scale, shift, y) == 0
    np.testing.assert_array_equal(y, np.broadcast_to(shift, y.shape))
    grad_x, grad_scale, grad_shift = unwritten(2, 19, width), unwritten(*scale.shape), y[:, :1] * 0
    grad = floats(2, 19, width, seed=3)
    assert run("modulated_norm_grad", grad, x, scale, grad_x, grad_scale, grad_shift) == 0
    d = grad * (1 + scale.astype(np.float64))
    np.testing.assert_allclose(grad_x, 1e3 * (d - d.mean(-1, keepdims=True)), 1e-5, 2e-3)
    np.testing.assert_array_equal(grad_scale, 0)


@pytest.mark.parametrize("sign", [-1, 1])
def test_gelu_far_from_zero_is_zero_or_x_with_their_gradients(run, sign):
    x = np.array([10, 11, 1e3, 1e13, 1e18, 3e38], np.float32) * np.float32(sign)
    y, grad = unwritten(6), unwritten(6)
    assert run("gelu", x, y) == 0
    assert run("gelu_grad", np.ones(6, np.float32), x, grad) == 0
    np.testing.assert_allclose(y, np.maximum(x, 0), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(grad, x > 0, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("unit_length", [0, 1])
def test_attention_of_scale_zero_has_the_gradient_of_its_definition(run, unit_length):
    # all keys weigh the same: mixed is the mean of the values, whatever the queries
    b, length, heads, d = 1, 5, 2, 16
    qkv, scale = floats(b, length, 3 * heads * d), np.zeros(heads, np.float32)
    qkv[0, 2, :d] = 0  # a query of length 0
    settings = ints(0, 1, 5), ints(unit_length)
    mixed, logs = unwritten(b, length, heads * d), unwritten(b, heads, length)
    assert run("next_scale_attention", qkv, scale, *settings, mixed, logs) == 0
    grad = floats(b, length, heads * d, seed=1)
    grad_qkv, grad_scale = unwritten(*qkv.shape), unwritten(heads)
    inputs = grad, qkv, scale, *settings, logs
    assert run("next_scale_attention_grad", *inputs, grad_qkv, grad_scale) == 0

    q, k, v = qkv.astype(np.float64).reshape(length, 3, heads, d).transpose(1, 2, 0, 3)
    if unit_length:
        q, k = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (q, k))
    keys = np.array([1, 5, 5, 5, 5])
    out = grad.reshape(length, heads, d).transpose(1, 0, 2)
    expected, grad_v = np.zeros(heads), np.zeros((heads, length, d))
    for h in range(heads):
        for t in range(length):
            seen = slice(0, keys[t])
            dp = v[h, seen] @ out[h, t]
            expected[h] += ((dp - dp.mean()) / keys[t] * (k[h, seen] @ q[h, t])).sum()
            grad_v[h, seen] += out[h, t] / keys[t]
    np.testing.assert_allclose(grad_scale, expected, 1e-4, 1e-5)
    got = grad_qkv.reshape(length, 3, heads, d).transpose(1, 2, 0, 3)
    np.testing.assert_array_equal(got[:2], 0)
    np.testing.assert_allclose(got[2], grad_v, 1e-5, 1e-6)


# arrays of which one does not fit the others, and the shapes of the outputs
UNFIT = [
    ("conv2d", (floats(1, 4, 4, 3), floats(8, 3, 3, 4), BIAS, ints(1, 1, 0)), [(1, 4, 4, 8)]),
    ("conv2d", (floats(1, 4, 4, 3), floats(8, 3, 3, 3), BIAS, ints(0, 1, 0)), [(1, 4, 4, 8)]),
    ("conv2d", (floats(1, 4, 4, 3), floats(8, 3, 3, 3), BIAS, ints(1, -1, 0)), [(1, 4, 4, 8)]),
    ("group_norm", (floats(1, 4, 4, 10), floats(10), floats(10), *NORM), [(1, 4, 4, 10)]),
    (
        "group_norm_grad",
        (floats(1, 4, 4, 8), floats(1, 4, 4, 8), BIAS, BIAS, ints(0), NORM[1]),
        [(1, 4, 4, 8), (8,), (8,)],
    ),
    (  # heads of 6 channels
        "next_scale_attention",
        (floats(1, 5, 36), floats(2), ints(0, 1, 5), ints(1)),
        [(1, 5, 12), (1, 2, 5)],
    ),
    (  # half a scale
        "next_scale_attention",
        (floats(1, 4, 96), floats(2), ints(0, 1, 5), ints(1)),
        [(1, 4, 32), (1, 2, 4)],
    ),
    (  # more tokens than the cache has room for
        "cached_attention",
        (floats(1, 4, 96), floats(2), ints(2), ints(1), floats(1, 2, 16, 16), floats(1, 2, 5, 16)),
        [(1, 4, 32)],
    ),
]


@pytest.mark.parametrize(("name", "inputs", "outputs"), UNFIT)
def test_kernels_refuse_arrays_that_do_not_fit_before_they_write(run, name, inputs, outputs):
    before, got = [a.copy() for a in inputs], [unwritten(*shape) for shape in outputs]
    assert run(name, *inputs, *got) == 3
    assert all(np.isnan(array).all() for array in got)
    for array, kept in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_kernels_refuse_every_array_of_another_shape_or_type(run, calls):
    free = {"sum_of_squares": {0}}  # may be of any shape
    for call in calls:
        for i, array in enumerate(call.arrays):
            others = [array.astype(np.float64)]
            if i not in free.get(call.name, set()):
                others.append(np.ascontiguousarray(np.stack([array, array])))
            for other in others:
                arrays = [a.copy() for a in call.arrays]
                arrays[i] = other
                kept = [a.copy() for a in arrays]
                assert run(call.name, *arrays) == 3, f"{call.name}, array {i}: {other.shape}"
                for a, before in zip(arrays, kept, strict=True):
                    np.testing.assert_array_equal(a, before)
        assert run(call.name, *(a.copy() for a in call.arrays[:-1])) == 3, call.name
