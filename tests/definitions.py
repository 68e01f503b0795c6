"""What kernels and operators compute, and its gradients, by definition and in float64."""

import numpy as np


def convolution(x_byxc, weight_ohwi, stride, before, size, grad_byxo):
    """The convolution without bias, and the gradients of x and of the weight, tap by tap."""
    k, (b, y, x, c), (rows, columns) = weight_ohwi.shape[1], x_byxc.shape, size
    far_y, far_x = (rows - 1) * stride + k, (columns - 1) * stride + k
    padded = np.zeros((b, max(far_y, before + y), max(far_x, before + x), c))
    inside = np.s_[:, before : before + y, before : before + x]
    padded[inside] = x_byxc
    out = np.zeros((b, rows, columns, weight_ohwi.shape[0]))
    grad_padded, grad_weight = np.zeros(padded.shape), np.zeros(weight_ohwi.shape)
    for i in range(k):
        for j in range(k):
            taps = np.s_[:, i : i + far_y - k + 1 : stride, j : j + far_x - k + 1 : stride]
            out += padded[taps] @ weight_ohwi[:, i, j].T.astype(np.float64)
            grad_padded[taps] += grad_byxo @ weight_ohwi[:, i, j].astype(np.float64)
            grad_weight[:, i, j] = np.tensordot(grad_byxo, padded[taps], ((0, 1, 2), (0, 1, 2)))
    return out, grad_padded[inside], grad_weight


def relu6(x):
    return np.clip(x, 0, 6)


def relu6_grad(grad, x):
    """Also of the result for x."""
    return grad * ((x > 0) & (x < 6))


def depthwise(x_byxc, weight_kkc, bias_c, stride, before, size):
    """The convolution of each channel alone, between two ReLU6."""
    weight_ohwi = np.einsum("yxc,co->oyxc", weight_kkc, np.eye(len(bias_c)))
    none = np.zeros((len(x_byxc), *size, len(bias_c)))
    return relu6(convolution(relu6(x_byxc), weight_ohwi, stride, before, size, none)[0] + bias_c)


def depthwise_grad(grad_byxc, x_byxc, weight_kkc, stride, before, out_byxc):
    """The gradient of x; ``out_byxc`` is the result."""
    weight_ohwi = np.einsum("yxc,co->oyxc", weight_kkc, np.eye(x_byxc.shape[3]))
    grad, size = relu6_grad(grad_byxc, out_byxc), out_byxc.shape[1:3]
    _, grad_x, _ = convolution(relu6(x_byxc), weight_ohwi, stride, before, size, grad)
    return relu6_grad(grad_x, x_byxc)


def upsampled(x_byxc):
    """Each pixel becomes 2x2."""
    return x_byxc.repeat(2, 1).repeat(2, 2)


def upsampled_grad(grad_byxc):
    b, y, x, c = grad_byxc.shape
    return grad_byxc.reshape(b, y // 2, 2, x // 2, 2, c).sum((2, 4))


def standardized(x, axes, epsilon):
    """x with mean 0 and deviation 1 over ``axes``, and 1 / its deviation."""
    centred = x - x.mean(axes, np.float64, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)
    return centred * inverse, inverse


def standardized_grad(grad, x, axes, epsilon):
    normal, inverse = standardized(x, axes, epsilon)
    along = (grad * normal).mean(axes, keepdims=True)
    return inverse * (grad - grad.mean(axes, keepdims=True) - normal * along)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def group_norm(x_byxc, gain_c, bias_c, groups, silu=False, epsilon=1e-6):
    b, y, x, c = x_byxc.shape
    normal, _ = standardized(x_byxc.reshape(b, y * x, groups, -1), (1, 3), epsilon)
    out = normal.reshape(b, y, x, c) * gain_c + bias_c
    return out * sigmoid(out) if silu else out


def group_norm_grad(grad_byxc, x_byxc, gain_c, bias_c, groups, silu=False, epsilon=1e-6):
    """The gradients of x, gain and bias."""
    grad, parts = grad_byxc, (len(x_byxc), -1, groups, x_byxc.shape[3] // groups)
    normal, _ = standardized(x_byxc.reshape(parts), (1, 3), epsilon)
    normal = normal.reshape(x_byxc.shape)
    if silu:
        out = normal * gain_c + bias_c
        grad = grad * sigmoid(out) * (1 + out * (1 - sigmoid(out)))
    grad_x = standardized_grad(
        (grad * gain_c).reshape(parts), x_byxc.reshape(parts), (1, 3), epsilon
    )
    sums = (grad * normal).sum((0, 1, 2)), grad.sum((0, 1, 2), np.float64)
    return grad_x.reshape(x_byxc.shape), *sums


def nearest_code(vectors_nz, codes_vz):
    """The first code at the smallest distance."""
    distances = ((vectors_nz[:, None].astype(np.float64) - codes_vz) ** 2).sum(-1)
    return distances.argmin(1)


def gelu(x):
    """In its tanh form."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_grad(grad, x):
    tanh = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    slope = (1 - tanh**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return grad * 0.5 * (1 + tanh + x * slope)


def modulated_norm(x_blc, scale_b1c, shift_b1c):
    return standardized(x_blc, -1, 1e-6)[0] * (1 + scale_b1c) + shift_b1c


def modulated_norm_grad(grad_blc, x_blc, scale_b1c):
    """The gradients of x, scale and shift."""
    grad_x = standardized_grad(grad_blc * (1 + scale_b1c), x_blc, -1, 1e-6)
    grad_scale = (grad_blc * standardized(x_blc, -1, 1e-6)[0]).sum(1, keepdims=True)
    return grad_x, grad_scale, grad_blc.sum(1, keepdims=True)


def gated_sum(x_blc, branch_blc, gate_b1c):
    return x_blc + gate_b1c * branch_blc


def gated_sum_grad(grad_blc, branch_blc, gate_b1c):
    """The gradients of the branch and of the gate; that of x is the result's."""
    return grad_blc * gate_b1c, (grad_blc * branch_blc).sum(1, keepdims=True)


def linear(x, weight_oi, bias_o):
    return x @ weight_oi.T + bias_o


def linear_grad(grad, x, weight_oi):
    """The gradients of x, weight and bias."""
    rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    return grad @ weight_oi, rows.T @ inputs, rows.sum(0)


def unit(x):
    """Rows of length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def unit_grad(grad, x):
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return (grad - unit(x) * (unit(x) * grad).sum(-1, keepdims=True)) / length


def split_heads(qkv_bl3c, heads):
    """Queries, keys and values, each (B, H, L, d)."""
    b, length, c = qkv_bl3c.shape
    return qkv_bl3c.reshape(b, length, 3, heads, c // (3 * heads)).transpose(2, 0, 3, 1, 4)


def merge_heads(x_bhld):
    b, heads, length, d = x_bhld.shape
    return x_bhld.transpose(0, 2, 1, 3).reshape(b, length, heads * d)


def attention(q_bhld, k_bhld, v_bhld, seen_lm):
    """Mixed values, the logarithms of the sums of exponentials, and the shares of the keys."""
    scores = np.where(seen_lm, q_bhld @ k_bhld.swapaxes(2, 3), -np.inf)
    log_sums_bhl = np.log(np.exp(scores).sum(-1))
    shares_bhlm = np.exp(scores - log_sums_bhl[..., None])
    return shares_bhlm @ v_bhld, log_sums_bhl, shares_bhlm


def seen_by_scale(offsets, length):
    """(L, L): whether a token (row) sees another: those of its scale and of all before."""
    tokens = np.arange(length)
    ends = np.array(offsets)[np.searchsorted(offsets, tokens, "right")]
    return tokens < ends[:, None]


def next_scale_attention(qkv_bl3c, scale_h, offsets, unit_length):
    """Mixed values (B, L, C), and the logarithms of the sums of exponentials (B, H, L)."""
    q, k, v = split_heads(qkv_bl3c, len(scale_h))
    if unit_length:
        q, k = unit(q), unit(k)
    seen = seen_by_scale(offsets, qkv_bl3c.shape[1])
    mixed, log_sums_bhl, _ = attention(q * scale_h[:, None, None], k, v, seen)
    return merge_heads(mixed), log_sums_bhl


def next_scale_attention_grad(grad_blc, qkv_bl3c, scale_h, offsets, unit_length):
    """The gradients of qkv and of the scale."""
    b, length, c = grad_blc.shape
    heads = len(scale_h)
    grad = grad_blc.reshape(b, length, heads, c // heads).transpose(0, 2, 1, 3)
    q, k, v = split_heads(qkv_bl3c, heads)
    u, w = (unit(q), unit(k)) if unit_length else (q, k)
    seen, scale = seen_by_scale(offsets, length), scale_h[:, None, None]
    _, _, shares = attention(u * scale, w, v, seen)
    grad_shares = grad @ v.swapaxes(2, 3)
    grad_scores = shares * (grad_shares - (shares * grad_shares).sum(-1, keepdims=True))
    grad_u, grad_w = scale * (grad_scores @ w), grad_scores.swapaxes(2, 3) @ (u * scale)
    grad_scale = ((grad_scores @ w) * u).sum((0, 2, 3))
    if unit_length:
        grad_u, grad_w = unit_grad(grad_u, q), unit_grad(grad_w, k)
    parts = grad_u, grad_w, shares.swapaxes(2, 3) @ grad
    return np.concatenate([merge_heads(part) for part in parts], -1), grad_scale


def cached_attention(qkv_bl3c, scale_h, begin, unit_length, k_bhld, v_bhld):
    """Mixed values of one scale, and the keys and values (B, H, L, d) with it from ``begin``."""
    q, k, v = split_heads(qkv_bl3c, len(scale_h))
    if unit_length:
        q, k = unit(q), unit(k)
    end = begin + qkv_bl3c.shape[1]
    keys, values = k_bhld.copy(), v_bhld.copy()
    keys[:, :, begin:end], values[:, :, begin:end] = k, v
    seen = np.full((end - begin, end), True)
    mixed, *_ = attention(q * scale_h[:, None, None], keys[:, :, :end], values[:, :, :end], seen)
    return merge_heads(mixed), keys, values


def adamw(parameter, first, second, gradient, rate, epsilon, decay, betas):
    """The parameter and both moments after a step; the rate has the moments' corrections."""
    first = betas[0] * first + (1 - betas[0]) * gradient
    second = betas[1] * second + (1 - betas[1]) * gradient**2
    update = first / (np.sqrt(second) + epsilon) + decay * parameter
    return parameter - rate * update, first, second
