"""The first hour's checks of the tokenizer's operators."""

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import nn, ops
from var_tokenizer import layout, operators
from var_transformer.check_ascend.checks import find
from var_transformer.check_ascend.tokenizer_checks import tokenizer_checks

CODEC = tiny.tokenizer(channels=64, scales=(1, 2, (3, 4), (4, 6)))


def finding(name: str):
    checks = tokenizer_checks(CODEC, 2, compiled=False)
    (check,) = (c for c in checks if c.name == f"tokenizer's {name}")
    return find(check)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_tokenizers_operators_of_this_device_are_as_defined(compiled):
    for check in tokenizer_checks(CODEC, 2, compiled):
        assert find(check).fault == ""


class Changed(nn.Cell):
    def __init__(self, run, change) -> None:
        super().__init__()
        self.run, self.change = run, change

    def construct(self, *arrays):
        return self.change(self.run, *arrays)


def called(module, name, change):
    """The operator that ``module.name`` builds is called through ``change(operator, *arrays)``."""
    build = getattr(module, name)
    return lambda patch: patch.setattr(
        module, name, lambda *args, **terms: Changed(build(*args, **terms), change)
    )


def built(module, name, arguments):
    """``module.name`` builds its operator from other arguments."""
    build = getattr(module, name)
    return lambda patch: patch.setattr(module, name, lambda *_, **__: build(*arguments))


def convolution(change):
    return called(operators, "conv2d", change)


def half(x):
    return x.astype(ms.float16).astype(ms.float32)


def channels_first(weight):
    o, k, _, c = weight.shape
    return weight.reshape(o, c, k, k).transpose(0, 2, 3, 1)


def group_norm(epsilon=1e-6, still=lambda x: x, interleaved=False):
    def change(_, x, gain, bias):
        b, y, across, c = x.shape
        last, axes = ((c // 32, 32), (1, 2)) if interleaved else ((32, c // 32), (1, 3))
        parts = x.reshape(b, y * across, *last)
        centred = parts - still(parts.mean(axes, keep_dims=True))
        rate = still(ops.rsqrt((centred * centred).mean(axes, keep_dims=True) + epsilon))
        out = (centred * rate).reshape(x.shape) * gain + bias
        return out * ops.sigmoid(out)

    return called(operators, "group_norm", change)


def attention(change):
    return called(layout, "pixel_attention", change)


def swapped(run, qkv, scale):
    q, k, v = ops.split(qkv, qkv.shape[-1] // 3, 3)
    return run(ops.concat((q, v, k), 3), scale)


def over_queries(_, qkv, scale):
    b, y, x, _ = qkv.shape
    q, k, v = ops.split(qkv.reshape(b, y * x, -1), qkv.shape[-1] // 3, 2)
    shares = ops.softmax(ops.BatchMatMul(transpose_b=True)(q * scale, k), 1)
    return ops.BatchMatMul()(shares, v).reshape(b, y, x, -1)


class OneGradient(nn.Cell):
    def construct(self, codes, ids):
        return ops.gather(codes, ids, 0)

    def bprop(self, codes, ids, out, dout):
        once = np.zeros((codes.shape[0], ids.shape[0]), np.float32)
        once[ids.asnumpy(), np.arange(ids.shape[0])] = 1
        last = once * (np.cumsum(once[:, ::-1], 1)[:, ::-1] == 1)  # of each code
        return ops.matmul(ms.Tensor(last), dout), ops.zeros_like(ids)


NORM, MISTAKES = "group norm", {}
MISTAKES["convolution", "the bias is missing"] = convolution(
    lambda run, x, weight, bias: run(x, weight, 0 * bias)
)
MISTAKES["convolution", "the kernel is flipped"] = convolution(
    lambda run, x, weight, bias: run(x, ops.flip(weight, (1, 2)), bias)
)
MISTAKES["convolution", "the weight is read channels first"] = convolution(
    lambda run, x, weight, bias: run(x, channels_first(weight), bias)
)
MISTAKES["convolution", "the products round float32 to 10 bits (HF32, or half)"] = convolution(
    lambda run, x, weight, bias: run(half(x), half(weight), bias)
)
MISTAKES["convolution", "its zeros are at the end alone"] = built(
    operators, "conv2d", (3, 1, (0, 2))
)
MISTAKES["halving", "its zeros are not at the end"] = built(operators, "conv2d", (3, 2, (1, 0)))
MISTAKES["doubling", "images are repeated, not pixels"] = lambda patch: patch.setattr(
    operators,
    "conv2d",
    lambda *_, plain=operators.conv2d: Changed(
        plain(3), lambda run, x, weight, bias: run(ops.tile(x, (1, 2, 2, 1)), weight, bias)
    ),
)
MISTAKES[NORM, "epsilon is 1e-5, not 1e-6"] = group_norm(1e-5)
MISTAKES[NORM, "neighbouring channels are in different groups"] = group_norm(interleaved=True)
MISTAKES[NORM, "mean and variance count as constants"] = group_norm(still=ops.stop_gradient)
MISTAKES[NORM, "the SiLU is missing"] = built(operators, "group_norm", (32,))
MISTAKES["attention", "the scale is left out"] = attention(lambda run, qkv, scale: run(qkv, 1.0))
MISTAKES["attention", "the scale is folded in twice"] = attention(
    lambda run, qkv, scale: run(qkv, scale * scale)
)
MISTAKES["attention", "keys and values are swapped"] = attention(swapped)
MISTAKES["attention", "the softmax runs over the queries"] = attention(over_queries)
MISTAKES["area averaging", "the map is read column by column"] = called(
    layout, "tokens_of_map", lambda run, x, matrix: run(x.transpose(0, 2, 1, 3), matrix)
)
MISTAKES["codes", "a code that is read twice has one gradient"] = lambda patch: patch.setattr(
    layout, "rows_at", OneGradient
)
MISTAKES["nearest code", "the lengths of the codes do not count"] = called(
    operators, "nearest_code", lambda _, v, codes: ops.Argmin()(-ops.matmul(v, codes.T))
)
MISTAKES["nearest code", "the farthest code is found"] = called(
    operators,
    "nearest_code",
    lambda _, v, codes: ops.Argmin()(2 * ops.matmul(v, codes.T) - (codes * codes).sum(1)),
)


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_in_an_operator_of_the_tokenizer_is_named(monkeypatch, name, mistake):
    MISTAKES[name, mistake](monkeypatch)
    assert finding(name).fault.endswith(f": {mistake}")
