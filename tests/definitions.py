"""What kernels and operators compute, by definition and in float64."""

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
