"""A published tokenizer serves any number of scales; only its statistics depend on it."""

import logging

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from var_convert import convert, inspect, verify
from var_convert.cli import main
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError

torch = pytest.importorskip("torch")

HITS = "quantize.ema_vocab_hit_SV"
SEVEN = (1, 2, 3, 4, 5, 6, 8)
FOURTEEN = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)  # 1024 px, 16 a pixel


def used(state):
    return {**state, HITS: torch.rand(state[HITS].shape)}


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("scales", [SEVEN, FOURTEEN, (1, 2), (1, (1, 2), (2, 4), (4, 8))])
def test_another_number_of_scales_keeps_all_but_the_statistics(
    save_pth, tmp_path, caplog, scales, suffix
):
    path, state = save_pth(tiny.tokenizer(), change=used)
    source = convert(path, tmp_path / f"source{suffix}").target
    caplog.clear()
    target = convert(source, tmp_path / "o.safetensors", scales=scales).target
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "start at zero" in warnings[0]
    assert inspect(target).config == tiny.tokenizer(scales=scales)
    held = load_file(target)
    assert held[HITS].shape == (len(scales), 32) and not held[HITS].any()
    for name, tensor in state.items():
        if name != HITS:
            np.testing.assert_array_equal(held[name], tensor.numpy())
    assert verify(source, target, scales=scales).agrees()
    assert Tokenizer.load(target).schedule.scales == scales


def test_the_same_number_of_scales_keeps_the_statistics(save_pth, tmp_path, caplog):
    path, state = save_pth(tiny.tokenizer(), change=used)
    target = convert(path, tmp_path / "o.safetensors", scales=(1, 3, 5)).target
    np.testing.assert_array_equal(load_file(target)[HITS], state[HITS].numpy())
    assert "start at zero" not in caplog.text


def test_both_frameworks_agree_on_a_tokenizer_of_another_number_of_scales(save_pth, tmp_path):
    path, _ = save_pth(tiny.tokenizer())
    target = convert(path, tmp_path / "o.safetensors", scales=(1, 2, 3, 4)).target
    assert verify(path, target, scales=(1, 2, 3, 4), forward=True).agrees()


@pytest.mark.parametrize("native", [False, True])
def test_a_phi_for_each_scale_is_an_error(save_pth, refused, tmp_path, native):
    def own(state):
        return {n.replace("quant_resi.qresi_ls.", "quant_resi."): t for n, t in state.items()}

    path, _ = save_pth(tiny.tokenizer(phi_count=3), change=own)
    if native:
        path = convert(path, tmp_path / "native.safetensors").target
    message = refused(path, tmp_path / "o.ckpt", "--scales", "1,2,3,4")
    assert "phi of its own" in message and "expected 3" in message
    assert main([str(path), str(tmp_path / "o.ckpt"), "--scales", "1,2,4"]) == 0


@pytest.mark.parametrize("native", [False, True])
def test_as_many_shared_phi_as_scales_are_shared_all_the_same(save_pth, tmp_path, native):
    path, state = save_pth(tiny.tokenizer(phi_count=4))
    if native:
        path = convert(path, tmp_path / "native.safetensors").target
    four = convert(path, tmp_path / "four.safetensors", scales=(1, 2, 3, 4)).target
    back = torch.load(convert(four, tmp_path / "four.pth").target, weights_only=True)
    assert back.keys() == state.keys()
    again = convert(four, tmp_path / "five.safetensors", scales=(1, 2, 3, 4, 5)).target
    assert inspect(again).config.phi_count == 4


def test_a_rounded_tokenizer_of_other_scales_forgets_what_it_was_rounded_from(save_pth, tmp_path):
    path, _ = save_pth(tiny.tokenizer())
    half = convert(path, tmp_path / "h.safetensors", dtype="float16").target
    assert inspect(half).rounded_from
    other = convert(half, tmp_path / "o.safetensors", scales=(1, 2)).target
    assert inspect(other).rounded_from is None


def test_a_transformer_refuses_scales_that_are_not_its_own(save_pth, tmp_path):
    path, _ = save_pth(tiny.transformer())
    with pytest.raises(InputError, match="shape"):
        convert(path, tmp_path / "o.ckpt", scales=(1, 2, 3, 4))


@pytest.mark.parametrize("sums", [(1e-320, 1e-318, 1e308), (5e-324, 1e300, 1e308), (1, 4, np.inf)])
def test_statistics_that_no_schedule_has_say_nothing_of_the_scales(save_pth, sums):
    hits = torch.zeros(3, 32, dtype=torch.float64)
    hits[:, 0] = torch.tensor(sums, dtype=torch.float64)
    path, _ = save_pth(tiny.tokenizer(), change=lambda state: {**state, HITS: hits})
    assert inspect(path).config.scales == (1, 2, 3) and inspect(path).assumed == ("scales",)
