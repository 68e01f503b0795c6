"""The definitions themselves: which kernels have one, and whether gradients are gradients."""

import re
from pathlib import Path

import definitions as d
import numpy as np
import pytest
from native.calls import every_call
from native.expected import EXPECTED

ROOT = Path(__file__).parents[1]


def test_every_kernel_has_a_definition_and_is_called():
    sources = ROOT.glob("packages/*/src/*/cpp/*.cpp")
    kernels = {
        name for path in sources for name in re.findall(r"^KERNEL\((\w+)\)", path.read_text(), re.M)
    }
    assert len(kernels) > 15
    assert set(EXPECTED) == kernels
    assert {call.name for call in every_call()} == kernels


X, ONE = (2, 7, 5), (2, 1, 5)
QKV, OFFSETS = (2, 6, 12), (0, 1, 3, 6)


def norm(silu):
    return (
        lambda x, gain, bias: d.group_norm(x, gain, bias, 2, silu),
        lambda grad, *arrays: d.group_norm_grad(grad, *arrays, 2, silu),
        [(2, 3, 4, 6), (6,), (6,)],
    )


def attention(unit_length):
    return (
        lambda qkv, scale: d.next_scale_attention(qkv, scale, OFFSETS, unit_length)[0],
        lambda grad, *arrays: d.next_scale_attention_grad(grad, *arrays, OFFSETS, unit_length),
        [QKV, (2,)],
    )


# a function, its gradients, and the shapes of the arrays by which they are taken, the first ones
CASES = {
    "upsampled": (d.upsampled, lambda g, _: [d.upsampled_grad(g)], [(2, 3, 4, 5)]),
    "group norm": norm(False),
    "group norm and SiLU": norm(True),
    "gelu": (d.gelu, lambda g, x: [d.gelu_grad(g, x)], [(3, 7)]),
    "modulated norm": (
        d.modulated_norm,
        lambda g, x, scale, _: d.modulated_norm_grad(g, x, scale),
        [X, ONE, ONE],
    ),
    "gated sum": (
        d.gated_sum,
        lambda g, _, branch, gate: [g, *d.gated_sum_grad(g, branch, gate)],
        [X, X, ONE],
    ),
    "linear": (
        d.linear,
        lambda g, x, weight, _: d.linear_grad(g, x, weight),
        [(2, 3, 4), (5, 4), (5,)],
    ),
    "attention": attention(False),
    "attention of unit vectors": attention(True),
}


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_the_central_difference(name):
    function, gradients, shapes = CASES[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    grad = rng.standard_normal(function(*arrays).shape)
    for i, found in enumerate(gradients(grad, *arrays)):
        assert found.shape == arrays[i].shape
        direction = rng.standard_normal(found.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = [a + step * direction if j == i else a for j, a in enumerate(arrays)]
            ends.append((function(*moved) * grad).sum())
        difference = (ends[0] - ends[1]) / 2e-5
        assert (found * direction).sum() == pytest.approx(difference, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("which", ["x", "weight"])
def test_the_gradients_of_a_convolution_are_central_differences(which):
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((2, 5, 6, 3)), rng.standard_normal((4, 3, 3, 3))
    grad = rng.standard_normal((2, 3, 3, 4))
    _, grad_x, grad_weight = d.convolution(x, weight, 2, 1, (3, 3), grad)
    found = grad_x if which == "x" else grad_weight
    direction = rng.standard_normal(found.shape)

    def moved(step):
        ends = (x + step * direction, weight) if which == "x" else (x, weight + step * direction)
        return (d.convolution(*ends, 2, 1, (3, 3), grad)[0] * grad).sum()

    difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert (found * direction).sum() == pytest.approx(difference, rel=1e-6, abs=1e-6)
