"""What inspect and verify say about files."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from var_convert import convert, inspect, verify
from var_convert.cli import main
from var_tokenizer import Tokenizer, TokenizerConfig
from var_tokenizer.common import InputError, open_checkpoint, write_checkpoint
from var_transformer import Transformer, TransformerConfig

torch = pytest.importorskip("torch")

TOKENIZER, TRANSFORMER = tiny.tokenizer(), tiny.transformer()

SMALL = {"tokenizer": TOKENIZER, "transformer": TRANSFORMER}
COMMANDS = ("convert", "inspect", "verify")
TYPES = {"tokenizer": TokenizerConfig, "transformer": TransformerConfig}


@pytest.fixture
def pair(save_pth):
    """The small transformer as .pth and as .safetensors."""
    path, _ = save_pth(TRANSFORMER)
    return path, convert(path, path.with_suffix(".safetensors")).target


def altered(path, kind, change):
    """A copy of a native file with ``change`` applied to its tensors."""
    checkpoint = open_checkpoint(path, kind, TYPES[kind])
    tensors = checkpoint.read()
    change(tensors)
    write_checkpoint(path.with_name("altered.safetensors"), kind, checkpoint.config, tensors)
    return path.with_name("altered.safetensors")


@pytest.mark.parametrize("kind", SMALL)
def test_inspect_counts_what_is_learned(save_pth, random_model, kind):
    path, _ = save_pth(SMALL[kind])
    found = inspect(path)
    learned = sum(p.numel() for p in random_model(SMALL[kind]).parameters())
    assert (found.kind, found.config, found.parameters) == (kind, SMALL[kind], learned)


def test_inspect_lists_every_tensor_of_the_file(pair):
    state = torch.load(pair[0], weights_only=True)
    listed = {t.name: (t.dtype, t.shape) for t in inspect(pair[0]).tensors}
    assert listed == {n: (str(t.dtype)[6:], tuple(t.shape)) for n, t in state.items()}
    assert len(inspect(pair[1]).tensors) == len(state) - 4  # without the derived buffers


@pytest.mark.parametrize("kind", SMALL)
def test_the_checksum_is_the_same_in_every_format(save_pth, kind):
    path, _ = save_pth(SMALL[kind])
    targets = [convert(path, path.with_name(n)).target for n in ("b.safetensors", "c.ckpt")]
    assert len({inspect(p).checksum for p in (path, *targets)}) == 1


def test_the_checksum_sees_one_changed_bit(pair):
    def change(tensors):
        tensors["head.bias"].view(np.uint32)[7] ^= 1

    assert inspect(altered(pair[1], "transformer", change)).checksum != inspect(pair[1]).checksum


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_checksum_is_that_of_the_loaded_tokenizer(save_pth, dtype):
    path, _ = save_pth(TOKENIZER)
    target = convert(path, path.with_suffix(".safetensors"), dtype=dtype).target
    assert Tokenizer.load(target).checksum() == inspect(target).checksum


def test_inspect_names_the_element_types(pair):
    half = convert(pair[0], pair[0].with_name("half.ckpt"), dtype="bfloat16").target
    assert (inspect(pair[0]).dtype, inspect(half).dtype) == ("float32", "bfloat16")


def test_inspect_as_json(pair, capsys):
    assert main(["inspect", str(pair[1]), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["kind"] == "transformer"
    assert shown["architecture"]["depth"] == 2
    assert shown["parameters"] == inspect(pair[1]).parameters
    assert shown["checksum"] == inspect(pair[1]).checksum
    assert {"name": "head.bias", "dtype": "float32", "shape": [32]} in shown["tensors"]


def test_inspect_as_a_table(pair, capsys):
    assert main(["inspect", str(pair[0])]) == 0
    shown = capsys.readouterr().out
    for text in ("transformer", "1,2,3", inspect(pair[0]).checksum, "blocks.1.attn.mat_qkv.weight"):
        assert text in shown


def test_inspect_shows_class_names_and_the_tokenizer(pair, capsys):
    model = Transformer.load(pair[1])
    model.class_names, model.tokenizer_checksum = tuple("abcde"), "sha256:" + "1" * 64
    model.save(pair[1])
    assert main(["inspect", str(pair[1])]) == 0
    shown = capsys.readouterr().out
    assert "a, b, c, d, e" in shown and model.tokenizer_checksum in shown
    assert main(["inspect", str(pair[1]), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["class_names"] == list("abcde")
    assert shown["tokenizer"] == model.tokenizer_checksum


def test_inspect_says_what_it_assumed(save_pth, capsys):
    path, _ = save_pth(TOKENIZER)
    assert inspect(path).assumed == ("scales",)
    assert main(["inspect", str(path)]) == 0
    assert "1,2,3 (assumed)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", SMALL)
def test_verify_agrees_with_a_conversion(save_pth, kind):
    path, _ = save_pth(SMALL[kind])
    for target in ("b.safetensors", "c.ckpt", "d.pth"):
        result = verify(path, convert(path, path.with_name(target)).target)
        assert result.agrees() and result.largest == 0


def test_verify_gives_the_largest_differences_and_exits_with_1_beyond_the_tolerance(pair):
    def change(tensors):
        tensors["head.bias"][3] += 0.5
        tensors["word_embed.weight"][0, 0] -= 0.25

    differing = altered(pair[1], "transformer", change)
    result = verify(pair[0], differing)
    found = {t.name: t.largest for t in result.tensors if t.largest}
    assert found == pytest.approx({"head.bias": 0.5, "word_embed.weight": 0.25}, abs=1e-6)
    assert not result.agrees() and not result.agrees(0.49) and result.agrees(0.51)
    for tolerance, code in (("0", 1), ("0.49", 1), ("0.51", 0)):
        words = ["verify", str(pair[0]), str(differing), "--tolerance", tolerance]
        assert main(words) == code


def test_verify_shows_every_tensor(pair, capsys):
    main(["verify", str(pair[0]), str(pair[1])])
    shown = capsys.readouterr().out
    checkpoint = open_checkpoint(pair[1], "transformer", TransformerConfig)
    assert all(name in shown for name in checkpoint.tensors)


@pytest.mark.parametrize("left, right, largest", [(1, 0, np.inf), (0, 1, np.inf), (1, 1, 0)])
def test_nan_equals_nan_and_nothing_else(pair, left, right, largest):
    def change(tensors):
        tensors["head.bias"][3] = np.nan

    with_nan = altered(pair[1], "transformer", change)
    files = [with_nan if nan else pair[1] for nan in (left, right)]
    assert verify(*files).largest == largest


def test_verify_measures_what_a_half_precision_lost(pair):
    half = convert(pair[0], pair[0].with_name("half.safetensors"), dtype="float16").target
    state = torch.load(pair[0], weights_only=True)
    expected = {n: (t - t.half().float()).abs().max().item() for n, t in state.items()}
    for tensor in verify(pair[0], half).tensors:
        assert tensor.largest == pytest.approx(expected[tensor.name], abs=1e-9)


@pytest.mark.parametrize(
    "change", [{"depth": 1}, {"heads": 4}, {"scales": (1, 2, 4)}, {"shared_adaln": True}]
)
def test_another_architecture_is_a_difference_with_its_field(save_pth, change, caplog):
    path, _ = save_pth(TRANSFORMER)
    other, _ = save_pth(tiny.transformer(**change), name="other.pth")
    result = verify(path, other)
    assert [line.split()[0] for line in result.architecture] == list(change)
    assert not result.agrees(tolerance=1e9)
    assert main(["verify", str(path), str(other)]) == 1
    assert next(iter(change)) in caplog.text


def test_a_schedule_that_one_file_leaves_open_is_no_difference(save_pth):
    config = tiny.tokenizer(scales=(1, 3, 4))
    path, _ = save_pth(config)
    native = convert(path, path.with_suffix(".safetensors"), scales=(1, 3, 4)).target
    assert inspect(path).config.scales == (1, 2, 3)
    assert verify(path, native).agrees() and verify(native, path).agrees()


def test_another_kind_is_unusable(save_pth, caplog):
    vae, _ = save_pth(TOKENIZER, name="vae.pth")
    var, _ = save_pth(TRANSFORMER, name="var.pth")
    with pytest.raises(InputError, match=r"vae\.pth: holds a tokenizer; expected a transformer"):
        verify(var, vae)
    assert main(["verify", str(var), str(vae)]) == 2


def test_unknown_options_exit_with_2():
    assert main(["a.pth", "b.ckpt", "--depth", "16"]) == 2


def test_a_conversion_logs_how_far_it_is_and_ctrl_c_exits_with_130(monkeypatch, caplog):
    monkeypatch.setattr("var_tokenizer.common.progress.next_line", lambda elapsed: 0.001)
    caplog.set_level(logging.INFO)

    def half(*_files: Path, progress: Callable[[int, int], None], **_more: object) -> None:
        progress(600_000_000, 1_241_100_000)
        while "a.pth -> b.ckpt: 600 of 1241 MB, 0:00 so far" not in caplog.text:
            pass
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("var_convert.cli.convert", half)
    assert main(["a.pth", "b.ckpt"]) == 130
    assert caplog.messages[-1] == "interrupted; nothing was written"


@pytest.mark.parametrize("words", ["", "--help", *(f"{name} --help" for name in COMMANDS)])
def test_the_help_fits_on_a_screen_and_talks_of_no_exceptions(words, capsys):
    assert main(words.split()) == 0
    text = capsys.readouterr().out
    assert "usage: var-convert" in text
    assert len(text.splitlines()) <= 50
    assert "Raises" not in text and "InputError" not in text


def test_the_package_is_the_command_too():
    command = [sys.executable, "-m", "var_convert"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "usage: var-convert" in shown and "inspect" in shown
