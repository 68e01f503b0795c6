"""What each kernel leaves in its arrays, by tests/definitions.py, and how close it has to come."""

from collections.abc import Callable

import definitions
import numpy as np
from native.calls import Arrays, Call

TOLERANCE = 1e-5  # of the largest number of an array, of the size of its terms, or of 1


def _convolution(x, weight, geometry, grad):
    """What definitions.convolution gives for the pixels that are read."""
    stride, before, repeated = map(int, geometry)
    full, size = definitions.upsampled(x) if repeated else x, grad.shape[1:3]
    out, grad_x, grad_weight = definitions.convolution(full, weight, stride, before, size, grad)
    return out, definitions.upsampled_grad(grad_x) if repeated else grad_x, grad_weight


def _conv2d(x, weight, bias, geometry, out):
    return [_convolution(x, weight, geometry, np.zeros(out.shape))[0] + bias]


def _conv2d_plus(x, weight, bias, plus, geometry, out):
    return [_conv2d(x, weight, bias, geometry, out)[0] + plus]


def _conv2d_grad_x(grad, weight, x, geometry, _):
    return [_convolution(x, weight, geometry, grad)[1]]


def _conv2d_grad_weight(grad, x, weight, geometry, *_):
    return [_convolution(x, weight, geometry, grad)[2], grad.sum((0, 1, 2))]


def _group_norm(silu):
    def forward(x, gain, bias, groups, epsilon, _):
        return [definitions.group_norm(x, gain, bias, groups[0], silu, epsilon[0])]

    return forward


def _group_norm_grad(silu):
    def backward(grad, x, gain, bias, groups, epsilon, *_):
        return definitions.group_norm_grad(grad, x, gain, bias, groups[0], silu, epsilon[0])

    return backward


def _attention(qkv, scale, offsets, unit, *_):
    return definitions.next_scale_attention(qkv, scale, offsets, unit[0])


def _attention_grad(grad, qkv, scale, offsets, unit, *_):
    return definitions.next_scale_attention_grad(grad, qkv, scale, offsets, unit[0])


def _cached_attention(qkv, scale, begin, unit, keys, values, _):
    room = values.shape[2]  # the keys are (B, H, d, L rounded up)
    k = keys.swapaxes(2, 3)[:, :, :room]
    mixed, k, values = definitions.cached_attention(qkv, scale, begin[0], unit[0], k, values)
    keys = keys.copy()
    keys[..., :room] = k.swapaxes(2, 3)
    return [keys, values, mixed]


def _cached_block(x, modulation, qkv_weight, q_bias, v_bias, scale, *rest):
    *maps, begin, unit, keys, values, _ = rest
    m = [modulation[:, i : i + 1] for i in range(6)]  # gates, scales and shifts
    qkv_bias = np.concatenate((q_bias, np.zeros_like(q_bias), v_bias))
    qkv = definitions.linear(definitions.modulated_norm(x, m[2], m[4]), qkv_weight, qkv_bias)
    scale = np.exp(np.minimum(scale, np.log(100))) if unit[0] else scale
    *cache, mixed = _cached_attention(qkv, scale.ravel(), begin, unit, keys, values, None)
    x = definitions.gated_sum(x, definitions.linear(mixed, *maps[:2]), m[0])
    inner = definitions.linear(definitions.modulated_norm(x, m[3], m[5]), *maps[2:4])
    branch = definitions.linear(definitions.gelu(inner), *maps[4:])
    return [*cache, definitions.gated_sum(x, branch, m[1])]


def _widened(elements, kind, scales):
    """A weight as it is stored, in float64."""
    if kind == 2:
        elements = (elements.astype(np.uint32) << 16).view(np.float32)
    wide = elements.astype(np.float64)
    return wide * scales[:, None] if kind == 3 else wide


def _stored_linear(x, weight, kind, scales, bias, _):
    return [definitions.linear(x, _widened(weight, kind[0], scales), bias)]


def _stored_block(*arrays):
    inputs, kinds, scales, result = list(arrays[:16]), arrays[16], arrays[17:21], arrays[21]
    for i, at in enumerate((2, 6, 8, 10)):
        inputs[at] = _widened(inputs[at], kinds[i], scales[i])
    keys, values, y = _cached_block(*inputs, result)
    return [keys, values, kinds, *scales, y]


def _depthwise(x, weight, bias, geometry, out):
    args = (x, weight, bias, *map(int, geometry), out.shape[1:3])
    return [definitions.depthwise(*args)]


def _depthwise_grad(grad, x, weight, geometry, out, _):
    return [definitions.depthwise_grad(grad, x, weight, *map(int, geometry), out)]


def _adamw(parameter, first, second, gradient, factor, finite, scalars, betas):
    state = parameter, first, second
    if finite:
        state = definitions.adamw(*state, factor * gradient, *scalars, betas)
    return [*state, gradient, factor, finite, scalars, betas]


# kernel -> from its arrays, in float64, to its last ones after the call
EXPECTED: dict[str, Callable[..., Arrays]] = {
    "conv2d": _conv2d,
    "conv2d_plus": _conv2d_plus,
    "conv2d_grad_x": _conv2d_grad_x,
    "conv2d_grad_weight": _conv2d_grad_weight,
    "group_norm": _group_norm(False),
    "group_norm_silu": _group_norm(True),
    "group_norm_grad": _group_norm_grad(False),
    "group_norm_silu_grad": _group_norm_grad(True),
    "nearest_code": lambda vectors, codes, _: [definitions.nearest_code(vectors, codes)],
    "gelu": lambda x, _: [definitions.gelu(x)],
    "gelu_grad": lambda grad, x, _: [definitions.gelu_grad(grad, x)],
    "modulated_norm": lambda *arrays: [definitions.modulated_norm(*arrays[:3])],
    "modulated_norm_grad": lambda *arrays: definitions.modulated_norm_grad(*arrays[:3]),
    "gated_sum": lambda *arrays: [definitions.gated_sum(*arrays[:3])],
    "gated_sum_grad": lambda *arrays: definitions.gated_sum_grad(*arrays[:3]),
    "linear": lambda *arrays: [definitions.linear(*arrays[:3])],
    "linear_grad": lambda *arrays: definitions.linear_grad(*arrays[:3]),
    "next_scale_attention": _attention,
    "next_scale_attention_grad": _attention_grad,
    "cached_attention": _cached_attention,
    "cached_block": _cached_block,
    "stored_linear": _stored_linear,
    "stored_block": _stored_block,
    "depthwise": _depthwise,
    "depthwise_grad": _depthwise_grad,
    "sum_of_squares": lambda x, _: [np.array([(x**2).sum()])],
    "adamw": _adamw,
}


def _inverse_deviation(x, groups):
    """By which the norm of x (B, ..., C) multiplies, and a rounding error with it."""
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    return definitions.standardized(parts, (1, 3), 1e-6)[1].max()


def _size_of_terms(call: Call, i: int) -> float:
    """Of the sums that make array i, where they may cancel and leave their rounding errors."""
    gradient = call.name.endswith("grad")
    if call.name.startswith("group_norm"):
        return _inverse_deviation(call.arrays[gradient], call.arrays[gradient + 3][0])
    if call.name.startswith("modulated_norm"):
        x_blc = call.arrays[gradient]
        return _inverse_deviation(x_blc.reshape(-1, x_blc.shape[-1]), 1)
    if call.name == "next_scale_attention_grad" and i == len(call.arrays) - 1:
        return np.sqrt(call.arrays[0].size)  # the scale's, over all tokens and channels
    return 1.0


def differences(call: Call, results: Arrays) -> list[str]:
    """One line for each array that a call left other than by definition; none if it is right."""
    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in call.arrays]
    written = EXPECTED[call.name](*wide)
    kept = call.arrays[: len(call.arrays) - len(written)]
    lines = []
    for i, (got, wanted) in enumerate(zip(results, (*kept, *written), strict=True)):
        if got.shape != np.shape(wanted):
            lines.append(f"{call}, array {i}: shape {got.shape}, expected {np.shape(wanted)}")
        elif i < len(kept) or got.dtype != np.float32:
            if not np.array_equal(got, wanted):
                lines.append(f"{call}, array {i} was changed, or is another")
        elif got.size:
            error = np.abs(got - wanted).max()
            scale = max(1.0, np.abs(wanted).max(), _size_of_terms(call, i))
            if not error <= TOLERANCE * scale:  # nor where there is NaN
                lines.append(f"{call}, array {i}: error {error:.2g}, largest number {scale:.3g}")
    return lines
