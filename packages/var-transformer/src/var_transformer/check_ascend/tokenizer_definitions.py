"""What the tokenizer's operators compute; as ``definitions``."""

import numpy as np

from var_transformer.check_ascend.definitions import Array, kept


def convolution(
    x_byxc: Array,
    weight_ohwi: Array,
    bias_o: Array,
    d_byxo: Array,
    *,
    stride: int = 1,
    pads: tuple[int, int] = (1, 1),
    doubled: bool = False,
    tiled: bool = False,
    flipped: bool = False,
    read_as_oihw: bool = False,
    has_bias: bool = True,
    mantissa: int = 52,
) -> tuple[Array, Array, Array, Array]:
    """Tap by tap. pads: zeros (before, after) both axes. doubled: each pixel becomes 2 x 2 first.

    tiled: instead, the image becomes 2 x 2 images. flipped: the kernel, in both axes.
    read_as_oihw: the memory of the weight. mantissa: bits that the products keep of their operands.
    """
    if doubled:
        x_byxc = np.tile(x_byxc, (1, 2, 2, 1)) if tiled else x_byxc.repeat(2, 1).repeat(2, 2)
    (b, y, x, c), (o, k, _, _), (_, rows, columns, _) = (
        array.shape for array in (x_byxc, weight_ohwi, d_byxo)
    )
    weight = weight_ohwi
    if read_as_oihw:
        weight = weight.reshape(o, c, k, k).transpose(0, 2, 3, 1)
    if flipped:
        weight = weight[:, ::-1, ::-1]
    pixels, weight, d = (kept(array, mantissa) for array in (x_byxc, weight, d_byxo))
    padded = np.zeros((b, y + sum(pads), x + sum(pads), c))
    inside = np.s_[:, pads[0] : pads[0] + y, pads[0] : pads[0] + x]
    padded[inside] = pixels
    out, d_padded, d_weight = np.zeros(d.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for i in range(k):
        for j in range(k):
            ends = i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1
            taps = np.s_[:, i : ends[0] : stride, j : ends[1] : stride]
            out += padded[taps] @ weight[:, i, j].T
            d_padded[taps] += d @ weight[:, i, j]
            d_weight[:, i, j] = np.tensordot(d, padded[taps], ((0, 1, 2), (0, 1, 2)))
    d_x = d_padded[inside]
    if doubled:
        shape = (b, 2, y // 2, 2, x // 2, c) if tiled else (b, y // 2, 2, x // 2, 2, c)
        d_x = d_x.reshape(shape).sum((1, 3) if tiled else (2, 4))
    if flipped:
        d_weight = d_weight[:, ::-1, ::-1]
    if read_as_oihw:
        d_weight = d_weight.transpose(0, 3, 1, 2).reshape(weight_ohwi.shape)
    return out + has_bias * bias_o, d_x, d_weight, has_bias * d_byxo.sum((0, 1, 2))


def group_norm(
    x_byxc: Array,
    gain_c: Array,
    bias_c: Array,
    d_byxc: Array,
    *,
    groups: int = 32,
    epsilon: float = 1e-6,
    interleaved: bool = False,
    constant_statistics: bool = False,
    silu: bool = True,
) -> tuple[Array, Array, Array, Array]:
    """And the SiLU after it. interleaved: channel i belongs to group i modulo their number.

    constant_statistics: the gradient misses those of mean and deviation.
    """
    b, y, x, c = x_byxc.shape
    last = (c // groups, groups) if interleaved else (groups, c // groups)
    axes = (1, 2) if interleaved else (1, 3)

    def mean(array: Array) -> Array:
        return array.mean(axes, keepdims=True)

    parts = x_byxc.reshape(b, y * x, *last)
    centred = parts - mean(parts)
    rate = 1 / np.sqrt(mean(centred**2) + epsilon)
    normal = (centred * rate).reshape(x_byxc.shape)
    out, d = normal * gain_c + bias_c, d_byxc
    if silu:
        share = 1 / (1 + np.exp(-out))
        d = d * share * (1 + out * (1 - share))
        out = out * share
    d_normal = (d * gain_c).reshape(parts.shape)
    d_x = rate * d_normal
    if not constant_statistics:
        d_x = rate * (d_normal - mean(d_normal) - centred * rate * mean(d_normal * centred * rate))
    return out, d_x.reshape(x_byxc.shape), (d * normal).sum((0, 1, 2)), d.sum((0, 1, 2))


def pixel_attention(
    qkv_byx3c: Array,
    d_byxc: Array,
    *,
    scale: float,
    swapped: tuple[int, int, int] = (0, 1, 2),
    over_queries: bool = False,
) -> tuple[Array, Array]:
    """swapped: what stands for queries, keys and values. over_queries: softmax, the wrong axis."""
    b, y, x, c = d_byxc.shape
    parts = qkv_byx3c.reshape(b, y * x, 3, c)
    q_bnc, k_bnc, v_bnc = (parts[:, :, i] for i in swapped)
    axis = 1 if over_queries else 2
    scores = scale * q_bnc @ k_bnc.swapaxes(1, 2)
    shares = np.exp(scores - scores.max(axis, keepdims=True))
    shares /= shares.sum(axis, keepdims=True)
    d_bnc = d_byxc.reshape(b, y * x, c)
    d_shares = d_bnc @ v_bnc.swapaxes(1, 2)
    d_scores = scale * shares * (d_shares - (d_shares * shares).sum(axis, keepdims=True))
    d_parts = np.empty_like(parts)
    d_of_each = (d_scores @ k_bnc, d_scores.swapaxes(1, 2) @ q_bnc, shares.swapaxes(1, 2) @ d_bnc)
    for place, part in zip(swapped, d_of_each, strict=True):
        d_parts[:, :, place] = part
    return (shares @ v_bnc).reshape(d_byxc.shape), d_parts.reshape(qkv_byx3c.shape)


def resized(
    x: Array, d: Array, *, matrix_mn: Array, by_column: bool = False
) -> tuple[Array, Array]:
    """A map or tokens times a matrix; by_column: the map's pixels are read column by column."""
    rows = x.swapaxes(1, 2) if by_column else x
    rows_bnc = rows.reshape(len(x), -1, x.shape[-1])
    out = matrix_mn @ rows_bnc
    d_rows = (matrix_mn.T @ d.reshape(out.shape)).reshape(rows.shape)
    return out.reshape(d.shape), d_rows.swapaxes(1, 2) if by_column else d_rows


def codes_at(
    codes_vz: Array, d: Array, *, ids: np.ndarray, once: bool = False
) -> tuple[Array, Array]:
    """once: a code that is read twice has the gradient of its last reading."""
    d_codes = np.zeros(codes_vz.shape)
    if once:
        d_codes[ids] = d
    else:
        np.add.at(d_codes, ids, d)
    return codes_vz[ids], d_codes


def nearest_code(
    vectors_nz: Array, codes_vz: Array, d_n: Array, *, lengths: bool = True, sign: int = 1
) -> tuple[Array]:
    """lengths: those of the codes count. sign: -1 for the farthest."""
    distance_nv = lengths * (codes_vz**2).sum(1) - 2 * vectors_nz @ codes_vz.T
    return ((sign * distance_nv).argmin(1).astype(np.float64),)
