"""Models of Ascend's operators for a CPU: NumPy for MindSpore's own, g++ for those in Ascend C."""

import ctypes
import shutil
import subprocess
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_uint32, c_uint64, c_void_p
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from var_transformer import ascend_c

MODEL = Path(__file__).parent / "ascend_c_model"
SOURCES = Path(ascend_c.__file__).parent
CORES = 40  # vector cores of the smallest 910B


class FlashAttentionModel(nn.Cell):
    """NumPy model of ``ops.flash_attention_score`` as documented, forward and gradient.

    The layouts name the axes (B batch, S tokens, N heads, D head width, H = N * D); a mask is
    bool or uint8 and True hides; sparse_mode 0 applies the mask, if any, inside the band of
    pre_tokens and next_tokens, 1 the whole mask, 2 and 3 are causal from the upper left and the
    lower right. Sums are in float64 here, results in the type of the query.
    """

    def __init__(self, heads, layout, mask, sparse_mode, pre, nxt, scalar) -> None:
        super().__init__()
        self.set_model = (heads, layout, mask, sparse_mode, pre, nxt, scalar)

    def bnsd(self, x: Tensor) -> np.ndarray:
        heads, layout = self.set_model[:2]
        array = x.asnumpy().astype(np.float64)
        if "H" in layout:
            array = array.reshape(*array.shape[:2], heads, -1)
            layout = layout.replace("H", "ND")
        assert array.shape[layout.index("N")] == heads, "head_num differs from the query's"
        return array.transpose([layout.index(axis) for axis in "BNSD"])

    def like(self, array: np.ndarray, x: Tensor) -> Tensor:
        layout = self.set_model[1].replace("H", "ND")
        array = array.transpose(["BNSD".index(axis) for axis in layout])
        return Tensor(array.reshape(x.shape).astype(x.asnumpy().dtype))

    def hidden(self, rows: int, columns: int) -> np.ndarray:
        _, _, mask, mode, pre, nxt, _ = self.set_model
        i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
        if mode in (2, 3):
            assert mask.shape == (2048, 2048), "causal modes want the compressed mask"
            return j - (columns - rows if mode == 3 else 0) > i
        if mask is None:
            assert mode == 0, "sparse_mode 1 wants the whole mask"
            return np.zeros((rows, columns), bool)
        assert mask.dtype in (ms.bool_, ms.uint8), "a mask is bool or uint8"
        assert mask.shape[-2:] == (rows, columns), "a mask covers queries times keys"
        outside = (j - i > nxt) | (i - j > pre)
        return mask.asnumpy().astype(bool) | (outside if mode == 0 else False)

    def weights(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        scores = self.set_model[-1] * q @ k.swapaxes(-1, -2)
        scores = np.where(self.hidden(*scores.shape[-2:]), -np.inf, scores)
        with np.errstate(invalid="ignore"):  # a query that sees nothing
            exponents = np.exp(scores - scores.max(-1, keepdims=True))
        return exponents / exponents.sum(-1, keepdims=True)

    def construct(self, q, k, v):
        weights = self.weights(self.bnsd(q), self.bnsd(k))
        return self.like(weights @ self.bnsd(v), q)

    def bprop(self, q, k, v, out, d_out):
        q_bnsd, k_bnsd, v_bnsd, d_bnsd = map(self.bnsd, (q, k, v, d_out))
        weights = self.weights(q_bnsd, k_bnsd)
        d_weights = d_bnsd @ v_bnsd.swapaxes(-1, -2)
        inner = (d_weights * weights).sum(-1, keepdims=True)
        d_scores = self.set_model[-1] * weights * (d_weights - inner)
        return (
            self.like(d_scores @ k_bnsd, q),
            self.like(d_scores.swapaxes(-1, -2) @ q_bnsd, k),
            self.like(weights.swapaxes(-1, -2) @ d_bnsd, v),
        )


def flash_attention_model(
    query,
    key,
    value,
    head_num,
    attn_mask=None,
    scalar_value=1.0,
    pre_tokens=2**31 - 1,
    next_tokens=2**31 - 1,
    input_layout="BSH",
    sparse_mode=0,
):
    settings = (attn_mask, sparse_mode, pre_tokens, next_tokens, scalar_value)
    return FlashAttentionModel(head_num, input_layout, *settings)(query, key, value)


class WriteModel:
    """``ReshapeAndCache``: rows (B, S, N * D) go to slots of caches (blocks, rows, N, D)."""

    def __call__(self, key, value, key_cache, value_cache, slot_mapping) -> Tensor:
        for rows, cache in ((key, key_cache), (value, value_cache)):
            array = cache.asnumpy().copy()
            flat = array.reshape(-1, rows.shape[-1])
            flat[slot_mapping.asnumpy()] = rows.asnumpy().reshape(-1, rows.shape[-1])
            cache.assign_value(Tensor(array))
        return key


def infer_attention_model(
    query, key, value, actual_seq_lengths_kv, num_heads, scale, input_layout, inner_precise
):
    """``fused_infer_attention_score`` without a mask, in BSND."""
    assert input_layout == "BSND" and inner_precise in (0, 1)
    (filled,) = set(actual_seq_lengths_kv.asnumpy().tolist())
    mixed = flash_attention_model(
        query,
        key[:, :filled],
        value[:, :filled],
        num_heads,
        scalar_value=scale,
        input_layout=input_layout,
    )
    return mixed, None


# ---------------------------------------------------------------- Ascend C
class Share(Structure):
    _fields_ = [("begin", c_uint32), ("end", c_uint32)]


class ModulatedNormTiling(Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("images", "length", "width", "cores", "tile_rows")),
        ("epsilon", c_float),
    ]


class UnitHeadsTiling(Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("images", "length", "heads", "head_width", "capacity")),
        *((name, c_uint32) for name in ("first", "cores", "tile_rows")),
    ]


def compiled(library: Path, sources: Path) -> ctypes.CDLL:
    """The kernels in ``sources`` on the model of the instructions."""
    if shutil.which("g++") is None:
        pytest.skip("needs a compiler")
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{MODEL}", f"-I{sources}"]
    subprocess.run([*command, MODEL / "harness.cpp", "-o", library], check=True)
    kernels = ctypes.CDLL(str(library))
    norm, heads = POINTER(ModulatedNormTiling), POINTER(UnitHeadsTiling)
    counts = POINTER(c_uint64), POINTER(c_uint32)
    kernels.plan_modulated_norm.argtypes = [*[c_uint32] * 6, c_float, norm]
    kernels.plan_unit_heads.argtypes = [*[c_uint32] * 9, heads]
    kernels.run_modulated_norm.argtypes = [*[c_uint32] * 2, *[c_void_p] * 4, norm, *counts]
    kernels.run_unit_heads.argtypes = [*[c_uint32] * 2, *[c_void_p] * 5, heads, *counts]
    kernels.run_modulated_norm.restype = kernels.run_unit_heads.restype = c_char_p
    return kernels


def bits(x: np.ndarray, number: int) -> np.ndarray:
    """float32 as the type of that number; bfloat16 as its upper half."""
    if number == 2:
        whole = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((whole + 0x7FFF + ((whole >> 16) & 1)) >> 16).astype(np.uint16)
    return np.ascontiguousarray(x, np.float32 if number == 0 else np.float16)


def values(x: np.ndarray, number: int) -> np.ndarray:
    if number == 2:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def address(x: np.ndarray) -> int:
    return x.ctypes.data


def modulated_norm(kernels, x, scale, shift, types, cores=CORES):
    """The kernel's result, or the rule that it broke."""
    (images, length, width), (a, b) = x.shape, types
    tiling, unwritten, used = ModulatedNormTiling(), c_uint64(), c_uint32()
    planned = kernels.plan_modulated_norm(images, length, width, a, b, cores, 1e-6, byref(tiling))
    x, scale, shift = bits(x, a), bits(scale, b), bits(shift, b)
    y = np.zeros(x.shape, scale.dtype)
    operands = [address(array) for array in (x, scale, shift, y)]
    fault = kernels.run_modulated_norm(
        a, b, *operands, byref(tiling), byref(unwritten), byref(used)
    )
    if fault:
        return fault.decode()
    assert unwritten.value == 0
    assert used.value == planned
    return values(y, b)


def unit_heads(kernels, q, k, v, scale, capacity, first, types, cores=CORES):
    """Queries and both caches, with the bytes that were left alone; or the rule broken."""
    (images, length, heads, d), (a, b) = q.shape, types
    tiling, unwritten, used = UnitHeadsTiling(), c_uint64(), c_uint32()
    planned = kernels.plan_unit_heads(
        *(images, length, heads, d, capacity, first, a, b, cores), byref(tiling)
    )
    qkv = bits(np.stack((q, k, v), 2), a)
    scale = np.ascontiguousarray(scale, np.float32)
    kind = np.uint16 if b == 2 else np.float16
    q_out = np.zeros(q.shape, kind)
    k_out, v_out = (np.full((images, capacity, heads, d), 7, kind) for _ in range(2))
    operands = [address(x) for x in (qkv, scale, q_out, k_out, v_out)]
    fault = kernels.run_unit_heads(a, b, *operands, byref(tiling), byref(unwritten), byref(used))
    if fault:
        return fault.decode()
    assert unwritten.value == 2 * (capacity - length) * images * heads * d * 2
    assert used.value == planned
    for cache in (k_out, v_out):
        assert (cache[:, :first] == 7).all() and (cache[:, first + length :] == 7).all()
    rows = slice(first, first + length)
    return [values(x, b) for x in (q_out, k_out[:, rows], v_out[:, rows])]


class AscendCOperators:
    """The operators of ``ascend_c`` in PyNative mode, on the model of the instructions."""

    def __init__(self, kernels: ctypes.CDLL) -> None:
        self.kernels = kernels

    def var_modulated_norm(self, x, scale, shift) -> Tensor:
        arrays = (t.astype(ms.float32).asnumpy() for t in (x, scale, shift))
        types = TYPES.index(x.dtype), TYPES.index(scale.dtype)
        got = modulated_norm(self.kernels, *arrays, types)
        assert not isinstance(got, str), got
        return Tensor(got.astype(np.float32)).astype(scale.dtype)

    def var_cached_heads(self, qkv, scale, k_cache, v_cache, first) -> Tensor:
        (b, length, _), half = qkv.shape, k_cache.dtype
        apart = qkv.astype(ms.float32).asnumpy().reshape(b, length, 3, len(scale), -1)
        q_k_v, types = apart.transpose(2, 0, 1, 3, 4), (TYPES.index(qkv.dtype), TYPES.index(half))
        capacity = k_cache.shape[1]
        got = unit_heads(self.kernels, *q_k_v, scale.asnumpy(), capacity, first, types)
        assert not isinstance(got, str), got
        for rows, cache in zip(got[1:], (k_cache, v_cache), strict=True):
            array = cache.asnumpy().copy()
            array[:, first : first + length] = rows
            cache.assign_value(Tensor(array))
        return Tensor(got[0].astype(np.float32)).astype(half)


TYPES = [ms.float32, ms.float16, ms.bfloat16]  # enum DType
