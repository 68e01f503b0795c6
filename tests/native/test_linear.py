"""The linear kernels against their definition in float64, at any size."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st


@settings(derandomize=True, deadline=None, max_examples=150)
@example(rows=1, depth=1, outputs=1)
@example(rows=41, depth=1, outputs=1)
@example(rows=41, depth=1, outputs=7)
@example(rows=41, depth=7, outputs=1)
@example(rows=1, depth=7, outputs=9)
@given(rows=st.integers(0, 90), depth=st.integers(0, 80), outputs=st.integers(0, 80))
def test_linear_maps_and_their_gradients_follow_the_definition(run, rows, depth, outputs):
    rng = np.random.default_rng(rows * 6561 + depth * 81 + outputs)
    shapes = (rows, depth), (outputs, depth), (outputs,), (rows, outputs)
    x, weight, bias, grad = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    y = np.full(grad.shape, np.nan, np.float32)
    assert run("linear", x, weight, bias, y) == 0
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight.T + bias, 1e-5, 1e-4)
    got = [np.full(a.shape, np.nan, np.float32) for a in (x, weight, bias)]
    assert run("linear_grad", grad, x, weight, *got) == 0
    wide = grad.astype(np.float64)
    for a, expected in zip(got, (wide @ weight, wide.T @ x, wide.sum(0)), strict=True):
        np.testing.assert_allclose(a, expected, 1e-5, 1e-4)
