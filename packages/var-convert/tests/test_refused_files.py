"""A file that cannot be used is refused in one clear line, with exit code 2 and no trace."""

import itertools
import logging
import shutil
from pathlib import PurePosixPath

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from var_convert import convert, inspect
from var_convert.cli import main
from var_tokenizer.common import InputError

torch = pytest.importorskip("torch")

TRANSFORMER = tiny.transformer()

SUFFIXES = [".pth", ".ckpt", ".safetensors"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused(refused, files, tmp_path, suffix):
    whole = files[suffix].read_bytes()
    for size in (1, 7, 100, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole[:size])
        message = refused(cut, tmp_path / "out.safetensors")
        assert str(cut) in message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_or_missing_file_is_refused(refused, tmp_path, suffix):
    path, target = tmp_path / f"model{suffix}", tmp_path / "o.ckpt"
    assert "no such file" in refused(path, target)
    path.touch()
    assert "empty" in refused(path, target)


def test_bytes_of_another_kind_are_told_without_the_words_of_a_library(refused, tmp_path):
    path = tmp_path / "picture.pth"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8)
    message = refused(path, tmp_path / "o.ckpt")
    assert message.endswith("not a .pth of weights only: it begins as no file of torch.save does")


@pytest.mark.parametrize("content, suffix", list(itertools.permutations(SUFFIXES, 2)))
def test_the_content_of_a_file_decides_not_its_suffix(files, tmp_path, content, suffix):
    wrong = tmp_path / f"wrong{suffix}"
    shutil.copy(files[content], wrong)
    assert inspect(wrong).checksum == inspect(files[content]).checksum


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES))
def test_random_damage_is_refused_or_harmless(files, tmp_path_factory, data, suffix):
    damaged = bytearray(files[suffix].read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 5000)))] = data.draw(
            st.integers(0, 255)
        )
    path = tmp_path_factory.mktemp("damaged") / f"model{suffix}"
    path.write_bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    try:
        found = inspect(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert found.kind == "transformer"


def test_a_pth_of_foreign_objects_is_refused_with_their_name(refused, tmp_path):
    torch.save({"args": PurePosixPath("/")}, tmp_path / "args.pth")
    message = refused(tmp_path / "args.pth", tmp_path / "o.ckpt")
    assert "pathlib.PurePosixPath" in message


FOREIGN = {
    "another model": {"conv1.weight": torch.zeros(3)},
    "no tensors": {},
    "a list": [torch.zeros(3)],
    "numbers": {"blocks.0": 3},
    "an empty trainer": {"trainer": {}},
}


@pytest.mark.parametrize("held", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_pth_is_refused(refused, tmp_path, held):
    torch.save(held, tmp_path / "foreign.pth")
    message = refused(tmp_path / "foreign.pth", tmp_path / "o.ckpt")
    assert "expected" in message


def test_a_foreign_safetensors_is_refused(refused, tmp_path):
    save_file({"conv1.weight": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    message = refused(tmp_path / "foreign.safetensors", tmp_path / "o.ckpt")
    assert "conv1.weight" in message


def without(name):
    return lambda state: {n: t for n, t in state.items() if n != name}


def with_(name, tensor):
    return lambda state: {**state, name: tensor}


DAMAGED = {
    "missing": (without("blocks.1.ffn.fc2.bias"), "blocks.1.ffn.fc2.bias"),
    "missing where architecture is read": (without("word_embed.weight"), "word_embed.weight"),
    "extra": (with_("blocks.1.ffn.fc3.bias", torch.zeros(3)), "blocks.1.ffn.fc3.bias"),
    "wrong shape": (with_("blocks.1.ffn.fc2.bias", torch.zeros(3)), "blocks.1.ffn.fc2.bias"),
    "wrong dimensions": (with_("head.weight", torch.zeros(3)), "head.weight"),
    "integers": (with_("head.bias", torch.zeros(32, dtype=torch.int64)), "head.bias"),
    "complex": (with_("head.bias", torch.zeros(32, dtype=torch.complex64)), "head.bias"),
    "sparse": (with_("head.bias", torch.zeros(32).to_sparse()), "head.bias"),
    "repeated elements": (with_("head.bias", torch.zeros(1).expand(10**9)), "head.bias"),
    "other mask": (with_("attn_bias_for_masking", torch.zeros(1, 1, 14, 14)), "attn_bias"),
    "other zeros": (with_("blocks.0.attn.zero_k_bias", torch.ones(32)), "zero_k_bias"),
    "unordered levels": (with_("lvl_1L", torch.arange(14).flip(0)[None]), "lvl_1L"),
    "levels that are not square": (with_("lvl_1L", torch.tensor([[0] + 13 * [1]])), "13"),
    "a distant block": (with_("blocks.999999999.attn.q_bias", torch.zeros(32)), "blocks.2."),
}


@pytest.mark.parametrize("change, named", DAMAGED.values(), ids=DAMAGED.keys())
def test_tensors_that_do_not_fit_are_named(refused, save_pth, tmp_path, change, named):
    path, _ = save_pth(TRANSFORMER, change=change)
    message = refused(path, tmp_path / "o.safetensors")
    assert str(path) in message and named in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_weights_is_a_warning_with_the_names(save_pth, tmp_path, caplog, value):
    def change(state):
        return {**state, "head.bias": torch.full((32,), value)}

    path, _ = save_pth(TRANSFORMER, change=change)
    assert main([str(path), str(tmp_path / "o.safetensors")]) == 0
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and warnings[0].endswith("in head.bias")
    assert inspect(tmp_path / "o.safetensors").not_finite == ("head.bias",)


def test_a_value_beyond_float16_is_reported(save_pth, tmp_path):
    path, _ = save_pth(TRANSFORMER, change=with_("head.bias", torch.full((32,), 1e6)))
    assert convert(path, tmp_path / "full.ckpt").not_finite == ()
    assert convert(path, tmp_path / "half.ckpt", dtype="float16").not_finite == ("head.bias",)


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model", "a.pth.tar", "MODEL.PTH"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_unknown_suffix_is_read_by_content(files, tmp_path, suffix, name):
    shutil.copy(files[suffix], tmp_path / name)
    assert inspect(tmp_path / name).checksum == inspect(files[suffix]).checksum


def test_a_file_of_unknown_suffix_and_content_is_refused(refused, tmp_path):
    path = tmp_path / "model.dat"
    path.write_bytes(bytes(100))
    assert "by its content" in refused(path, tmp_path / "o.ckpt")


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors", "m.ckpt", "m"])
def test_a_pointer_of_git_lfs_is_named_as_that(refused, tmp_path, name):
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (tmp_path / name).write_text(text)
    assert "pointer of Git LFS" in refused("inspect", tmp_path / name)
