"""What the operators and the attention compute, with gradients, by definition and in float64.

Each function takes the operator's arrays and the gradient of its result, and returns the result and
the gradients of its arrays. The keywords are mistakes that an implementation could make.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ERF = np.vectorize(math.erf, otypes=[float])


def gelu(x: Array, d: Array, *, erf: bool = False) -> tuple[Array, Array]:
    """In its tanh form; erf: in the exact one."""
    if erf:
        below = 0.5 * (1 + _ERF(x / math.sqrt(2)))
        return x * below, d * (below + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))
    slope = math.sqrt(2 / math.pi)
    tanh = np.tanh(slope * (x + 0.044715 * x**3))
    inner = (1 - tanh**2) * slope * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + tanh), d * 0.5 * (1 + tanh + x * inner)


def layer_norm(
    x_blc: Array,
    d_blc: Array,
    *,
    epsilon: float = 1e-6,
    unbiased: bool = False,
    constant_statistics: bool = False,
) -> tuple[Array, Array]:
    """Over the last axis. constant_statistics: the gradient misses those of mean and deviation."""
    count = x_blc.shape[-1]
    centred = x_blc - x_blc.mean(-1, keepdims=True)
    variance = (centred**2).sum(-1, keepdims=True) / (count - unbiased)
    rate = 1 / np.sqrt(variance + epsilon)
    normal = centred * rate
    if constant_statistics:
        return normal, d_blc * rate
    along = (d_blc * normal).sum(-1, keepdims=True) / (count - unbiased)
    return normal, rate * (d_blc - d_blc.mean(-1, keepdims=True) - normal * along)


def modulated_norm(
    x_blc: Array,
    scale_b1c: Array,
    shift_b1c: Array,
    d_blc: Array,
    *,
    one: float = 1.0,
    swapped: bool = False,
    first_image: bool = False,
    **norm: float,
) -> tuple[Array, Array, Array, Array]:
    """layer_norm(x) * (one + scale) + shift. first_image: its modulation is that of all."""
    if swapped:
        scale_b1c, shift_b1c = shift_b1c, scale_b1c
    if first_image:
        scale_b1c, shift_b1c = (np.broadcast_to(a[:1], a.shape) for a in (scale_b1c, shift_b1c))
    normal, d_x = layer_norm(x_blc, d_blc * (one + scale_b1c), **norm)  # type: ignore[arg-type]
    d_scale, d_shift = (d_blc * normal).sum(1, keepdims=True), d_blc.sum(1, keepdims=True)
    if swapped:
        d_scale, d_shift = d_shift, d_scale
    return normal * (one + scale_b1c) + shift_b1c, d_x, d_scale, d_shift


def gated_sum(
    x_blc: Array, branch_blc: Array, gate_b1c: Array, d_blc: Array, *, swapped: bool = False
) -> tuple[Array, Array, Array, Array]:
    """x + gate * branch; swapped: the gate is applied to x."""
    if swapped:
        out, d_branch, d_x, d_gate = gated_sum(branch_blc, x_blc, gate_b1c, d_blc)
        return out, d_x, d_branch, d_gate
    d_gate = (d_blc * branch_blc).sum(1, keepdims=True)
    return x_blc + gate_b1c * branch_blc, d_blc, d_blc * gate_b1c, d_gate


def linear(
    x: Array,
    weight_oi: Array,
    bias_o: Array,
    d: Array,
    *,
    transposed: bool = False,
    has_bias: bool = True,
    mantissa: int = 52,
) -> tuple[Array, Array, Array, Array]:
    """x @ weight.T + bias. mantissa: bits that the products keep of their operands."""
    rows, d_rows = x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])
    rows, weight, d_rows = (kept(a, mantissa) for a in (rows, weight_oi, d_rows))
    weight = weight.T if transposed else weight
    out = (rows @ weight.T).reshape(d.shape) + has_bias * bias_o
    d_weight = d_rows.T @ rows
    d_weight = d_weight.T if transposed else d_weight
    d_bias = has_bias * d.reshape(-1, d.shape[-1]).sum(0)
    return out, (d_rows @ weight).reshape(x.shape), d_weight, d_bias


def kept(x: Array, mantissa: int) -> Array:
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.round(fraction * 2.0 ** (mantissa + 1)), exponent - mantissa - 1)


def unit_length(x: Array, d: Array, *, projected: bool = True) -> tuple[Array, Array]:
    """x / max(|x|, 1e-12) over the last axis. projected: whether the length has a gradient."""
    length = np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    unit = x / length
    along = unit * (unit * d).sum(-1, keepdims=True)
    return unit, (d - projected * along) / length


@dataclass(frozen=True)
class AttentionRule:
    """Next-scale attention, and in what an implementation of it may differ.

    seen_ll: whether a query (row) sees a key. own_ll: whether a key's gradient counts a query; None
    for all that see it. zero_ll: whether a query sees a key as zeros. folded: how often the scale
    multiplies the queries; extra: what else does. unit: whether queries and keys get length 1, by
    head or all heads together. of_head_first: the projection is split as (H, 3, d). layout: of the
    memory that is read as (L, H, d). swapped: what stands for queries, keys and values.
    over_queries: softmax over the wrong axis. first_image: its keys and values are those of all.
    projected: see ``unit_length``. inner: the softmax's gradient is whole.
    """

    seen_ll: NDArray[np.bool_]
    own_ll: NDArray[np.bool_] | None = None
    zero_ll: NDArray[np.bool_] | None = None
    folded: int = 1
    extra: float = 1.0
    unit: bool = True
    by_head: bool = True
    of_head_first: bool = False
    layout: str = "lhd"
    swapped: tuple[int, int, int] = (0, 1, 2)
    over_queries: bool = False
    first_image: bool = False
    projected: bool = True
    inner: bool = True


def attention(
    qkv_bl3c: Array, scale_h: Array, d_blc: Array, rule: AttentionRule
) -> tuple[Array, Array, Array]:
    """Mixed values (B, L, C), and the gradients of the projection's result and of the scale."""
    (b, length, _), heads = qkv_bl3c.shape, len(scale_h)
    if rule.of_head_first:
        x_3blhd = qkv_bl3c.reshape(b, length, heads, 3, -1).transpose(3, 0, 1, 2, 4)
    else:
        x_3blhd = qkv_bl3c.reshape(b, length, 3, heads, -1).transpose(2, 0, 1, 3, 4)
    q_blhd, k_blhd, v_blhd = (x_3blhd[i] for i in rule.swapped)
    u_blhd, w_blhd = (_unit(x, q_blhd, rule)[0] for x in (q_blhd, k_blhd))
    factor_h1 = (scale_h**rule.folded * rule.extra)[:, None]

    operands = (u_blhd * factor_h1, w_blhd, v_blhd, d_blc.reshape(q_blhd.shape))
    mixed_bhld, *d_apart = _softmax_attention(rule, *(_apart(x, rule.layout) for x in operands))
    mixed, d_u, d_w, d_v = (_together(x, v_blhd.shape, rule.layout) for x in (mixed_bhld, *d_apart))

    d_scale_h = ((d_u * u_blhd).sum((0, 1, 3)) * rule.extra) * rule.folded
    d_scale_h = d_scale_h * scale_h ** max(rule.folded - 1, 0)
    parts = (_unit(q_blhd, d_u * factor_h1, rule)[1], _unit(k_blhd, d_w, rule)[1], d_v)
    d_x_3blhd = np.empty_like(x_3blhd)
    for place, part in zip(rule.swapped, parts, strict=True):
        d_x_3blhd[place] = part
    order = (1, 2, 3, 0, 4) if rule.of_head_first else (1, 2, 0, 3, 4)
    return (
        mixed.reshape(d_blc.shape),
        d_x_3blhd.transpose(order).reshape(qkv_bl3c.shape),
        d_scale_h,
    )


def _unit(x_blhd: Array, d_blhd: Array, rule: AttentionRule) -> tuple[Array, Array]:
    if not rule.unit:
        return x_blhd, d_blhd
    flat = x_blhd.shape if rule.by_head else (*x_blhd.shape[:2], -1)
    results = unit_length(x_blhd.reshape(flat), d_blhd.reshape(flat), projected=rule.projected)
    unit, d_x = (a.reshape(x_blhd.shape) for a in results)
    return unit, d_x


def _apart(x_blhd: Array, layout: str) -> Array:
    sizes = dict(zip("lhd", x_blhd.shape[1:], strict=True))
    read = x_blhd.reshape(len(x_blhd), *(sizes[axis] for axis in layout))
    return read.transpose(0, *(1 + layout.index(axis) for axis in "hld"))


def _together(x_bhld: Array, shape: tuple[int, ...], layout: str) -> Array:
    return x_bhld.transpose(0, *(1 + "hld".index(axis) for axis in layout)).reshape(shape)


def _softmax_attention(
    rule: AttentionRule, q_bhld: Array, k_bhld: Array, v_bhld: Array, d_bhld: Array
) -> tuple[Array, Array, Array, Array]:
    axis = 2 if rule.over_queries else 3
    there = True if rule.zero_ll is None else ~rule.zero_ll
    if rule.first_image:
        k_bhld, v_bhld = (np.broadcast_to(x[:1], x.shape) for x in (k_bhld, v_bhld))
    scores_bhlm = np.where(rule.seen_ll, q_bhld @ k_bhld.swapaxes(2, 3) * there, -np.inf)
    with np.errstate(invalid="ignore"):  # a query that sees nothing has no result: NaN
        shares_bhlm = np.exp(scores_bhlm - scores_bhlm.max(axis, keepdims=True))
        shares_bhlm /= shares_bhlm.sum(axis, keepdims=True)
    d_shares = d_bhld @ v_bhld.swapaxes(2, 3)
    inner = (d_shares * shares_bhlm).sum(axis, keepdims=True)
    d_scores = shares_bhlm * (d_shares - rule.inner * inner)
    counted = True if rule.own_ll is None else rule.own_ll
    d_k = (d_scores * counted).swapaxes(2, 3) @ q_bhld
    d_v = (shares_bhlm * counted).swapaxes(2, 3) @ d_bhld
    return (shares_bhlm * there) @ v_bhld, d_scores @ k_bhld, d_k, d_v
