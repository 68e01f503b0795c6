"""The fused operators in Ascend C, without an Ascend.

The kernels' own source is compiled by g++ against a model of the instructions
(ascend_c_model/kernel_operator.h) that also checks bounds, alignment, barriers and queues, and
runs against NumPy; the tiling, which is plain C++, is tested by itself.
"""

import re
import shutil
from ctypes import byref

import numpy as np
import pytest
from ascend_models import (
    CORES,
    SOURCES,
    ModulatedNormTiling,
    Share,
    UnitHeadsTiling,
    bits,
    compiled,
    modulated_norm,
    unit_heads,
    values,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from var_transformer import TransformerConfig

UNIFIED_BUFFER = (192 - 8) * 1024  # the rest is the library's
PRESETS = [TransformerConfig.preset(name) for name in ("d16", "d20", "d24", "d30", "d36-s")]


# ---------------------------------------------------------------- the tiling
@given(st.integers(1, 5000), st.integers(1, 64))
def test_the_cores_take_every_row_once_and_none_waits_for_another(kernels, rows, cores):
    cores, end, counts, share = min(cores, rows), 0, [], Share()
    for core in range(cores):
        kernels.share_of(rows, cores, core, byref(share))
        assert share.begin == end
        end = share.end
        counts.append(share.end - share.begin)
    assert end == rows
    assert min(counts) >= 1 and max(counts) - min(counts) <= 1


@given(st.integers(1, 6), st.integers(1, 90), st.integers(1, 48), st.integers(1, 40))
def test_tiles_cover_a_share_and_keep_to_one_image(kernels, images, length, cores, most):
    rows, share = images * length, Share()
    cores = min(cores, rows)
    for core in range(cores):
        kernels.share_of(rows, cores, core, byref(share))
        row = share.begin
        while row < share.end:
            count = kernels.rows_of_tile(row, share.end, length, most)
            assert 1 <= count <= most
            assert row // length == (row + count - 1) // length
            row += count
        assert row == share.end


batches = st.integers(1, 200)
lengths = st.integers(1, 2500)
TYPES = [(0, 0), (0, 1), (0, 2), (1, 1), (2, 2)]  # from float32, float16, bfloat16 (enum DType)
types_of_norms = st.sampled_from(TYPES)


@given(
    batches, lengths, st.integers(1, 64).map(lambda n: 64 * n), types_of_norms, st.integers(1, 50)
)
def test_tiles_of_the_norm_fit_and_fill_the_unified_buffer(
    kernels, images, length, width, types, cores
):
    tiling = ModulatedNormTiling()
    used = kernels.plan_modulated_norm(images, length, width, *types, cores, 1e-6, byref(tiling))
    assert 1 <= tiling.tile_rows <= length
    assert used <= UNIFIED_BUFFER
    assert tiling.cores == min(cores, images * length)
    share = -(-images * length // tiling.cores)
    if tiling.tile_rows < min(share, length, 248):  # one row more would not fit
        row = (8 + sum(8 if number == 0 else 4 for number in types)) * width + 256
        assert used + row + 8 * (32 + 2 * 4) > UNIFIED_BUFFER


@given(
    *(batches, lengths, st.integers(1, 248), st.integers(1, 4).map(lambda n: 16 * n)),
    *(st.sampled_from(TYPES[1:]), st.integers(1, 50), st.integers(0, 99)),
)
def test_tiles_of_the_heads_fit_the_unified_buffer(
    kernels, images, length, heads, head_width, types, cores, first
):
    tiling = UnitHeadsTiling()
    used = kernels.plan_unit_heads(
        images, length, heads, head_width, first + length, first, *types, cores, byref(tiling)
    )
    row = heads * head_width * (2 * (4 if types[0] == 0 else 2) + 4 + 8)
    if tiling.tile_rows == 0:
        assert row > 0.9 * UNIFIED_BUFFER
        return
    assert used <= UNIFIED_BUFFER
    assert tiling.tile_rows * heads <= 248  # repeats of one instruction


@pytest.mark.parametrize("config", PRESETS, ids=lambda config: f"d{config.depth}")
@pytest.mark.parametrize("types", TYPES)
def test_both_operators_take_every_preset(kernels, config, types):
    norm, heads = ModulatedNormTiling(), UnitHeadsTiling()
    length, width = config.schedule.length, config.width // config.heads
    halves = (types[0], types[1] or 1)
    kernels.plan_modulated_norm(96, length, config.width, *types, CORES, 1e-6, byref(norm))
    kernels.plan_unit_heads(
        *(96, length, config.heads, width, length, 0, *halves, CORES), byref(heads)
    )
    assert norm.tile_rows >= 2 and heads.tile_rows >= 2
    assert norm.cores == heads.cores == CORES


def test_shapes_that_the_operators_do_not_take_have_no_plan(kernels):
    norm, heads = ModulatedNormTiling(), UnitHeadsTiling()
    for width in (0, 32, 96, 4160):
        kernels.plan_modulated_norm(2, 5, width, 0, 1, CORES, 1e-6, byref(norm))
        assert norm.tile_rows == 0
    for count, width, capacity in ((2, 24, 9), (2, 80, 9), (249, 16, 9), (2, 64, 6)):
        kernels.plan_unit_heads(2, 5, count, width, capacity, 2, 0, 1, CORES, byref(heads))
        assert heads.tile_rows == 0


# ---------------------------------------------------------------- the kernels
def rounded(x: np.ndarray, number: int) -> np.ndarray:
    return values(bits(x, number), number)


ROUNDING = (2e-6, 2e-3, 1.6e-2)  # of numbers up to 4, by type


def normalized(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


@settings(max_examples=30, deadline=None)
@given(
    *(st.integers(1, 3), st.integers(1, 40), st.integers(1, 5).map(lambda n: 64 * n)),
    *(types_of_norms, st.integers(1, 12), st.integers(0, 2**31)),
)
def test_the_modulated_norm_is_numpys(kernels, images, length, width, types, cores, seed):
    rng = np.random.default_rng(seed)
    x = rounded(3 * rng.standard_normal((images, length, width)) + 5, types[0])
    scale, shift = rounded(rng.standard_normal((2, images, 1, width)), types[1])
    got = modulated_norm(kernels, x, scale, shift, types, cores)
    assert not isinstance(got, str), got
    tolerance = ROUNDING[types[1]]
    expected = normalized(x) * (1 + scale) + shift
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=4 * tolerance)


def of_length_one(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.maximum(np.sqrt((x**2).sum(-1, keepdims=True)), 1e-12)


@settings(max_examples=30, deadline=None)
@given(
    *(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    *(st.integers(1, 4).map(lambda n: 16 * n), st.integers(0, 9), st.integers(0, 9)),
    *(st.sampled_from(TYPES[1:]), st.integers(1, 12)),
    st.integers(0, 2**31),
)
def test_heads_have_length_one_and_the_cache_has_their_rows(
    kernels, images, length, heads, d, first, rest, types, cores, seed
):
    rng = np.random.default_rng(seed)
    q, k, v = rounded(rng.standard_normal((3, images, length, heads, d)), types[0])
    q[0, 0, 0] = 0  # no direction: stays 0
    scale = rng.uniform(1, 100, heads).astype(np.float32)
    got = unit_heads(kernels, q, k, v, scale, first + length + rest, first, types, cores)
    assert not isinstance(got, str), got
    tolerance = ROUNDING[types[1]]
    expected = (of_length_one(q) * scale[:, None], of_length_one(k), v)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("config", [PRESETS[0], PRESETS[-1]], ids=["d16", "d36-s"])
def test_the_kernels_run_at_published_widths(kernels, config):
    rng = np.random.default_rng(0)
    x, scale, shift = (rounded(rng.standard_normal((2, n, config.width)), 1) for n in (9, 1, 1))
    got = modulated_norm(kernels, x, scale, shift, (1, 1), cores=3)
    np.testing.assert_allclose(got, normalized(x) * (1 + scale) + shift, rtol=2e-3, atol=8e-3)
    q, k, v = (a.reshape(2, 9, config.heads, -1) for a in (x, x + scale, x + shift))
    scales = np.full(config.heads, 4.0)
    got = unit_heads(kernels, q, k, v, scales, config.schedule.length, 5, (0, 1), cores=3)
    np.testing.assert_allclose(got[0], 4 * of_length_one(q), rtol=2e-3, atol=2e-3)


# ---------------------------------------------------------------- the model notices
FAULTS = {
    "a barrier less before the spread": (
        *("modulated_norm.h", r"Div\(sums_, ones_, sums_, rows\);\n    Barrier\(\);"),
        *("Div(sums_, ones_, sums_, rows);", "reads without a barrier"),
    ),
    "a tile is read before it came": (
        *("modulated_norm.h", r"x = read_.template DeQue<From>\(\);\n    Barrier\(\);"),
        *("x = read_.template AllocTensor<From>();", "not its own now"),
    ),
    "a buffer that is not given back": (
        *("unit_heads.h", r"read_.FreeTensor\(x\);", "", "no free buffer"),
    ),
    "a wait for what nobody set": (
        *("unit_heads.h", r"AscendC::SetFlag<AscendC::HardEvent::S_V>\(event\);", ""),
        "waited for that nobody set",
    ),
    "scales that the vector unit does not wait for": (
        *("unit_heads.h", r"AscendC::WaitFlag<AscendC::HardEvent::S_V>\(event\);", ""),
        "does not wait for the scalar unit",
    ),
    "cores that share a row": (
        *("tiling.h", r"begin \+ each \+ \(core < more \? 1 : 0\)", "begin + each + 1"),
        "(a result is written twice|outside of every tensor)",
    ),
    "a plan that forgets the squares": (
        *("tiling.h", r"squares \+ 2 \* modulation", "2 * modulation"),
        "exceed the unified buffer",
    ),
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, marks=pytest.mark.slow if i > 1 else ()) for i, f in enumerate(FAULTS)],
)
def test_the_model_stops_a_faulty_kernel(tmp_path, fault):
    """So that its silence above means something."""
    name, pattern, replacement, message = FAULTS[fault]
    shutil.copytree(SOURCES, tmp_path / "sources", ignore=shutil.ignore_patterns("*.py*"))
    source = tmp_path / "sources" / name
    text, count = re.subn(pattern, replacement, source.read_text())
    assert count == 1
    source.write_text(text)
    kernels = compiled(tmp_path / "kernels.so", tmp_path / "sources")
    x = np.ones((2, 60, 512), np.float32)
    heads = x.reshape(2, 60, 8, 64)
    results = [modulated_norm(kernels, x, x[:, :1], x[:, :1], (1, 1), cores=3)]
    results.append(unit_heads(kernels, *[heads] * 3, np.ones(8), 60, 0, (1, 1), cores=3))
    assert any(isinstance(result, str) and re.search(message, result) for result in results)
