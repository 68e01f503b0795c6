"""A request that cannot be met is refused in one clear line, with exit code 2 and no trace."""

import resource
import shutil
from collections import namedtuple

import pytest
import tiny
from var_convert import inspect
from var_convert.cli import main
from var_convert.opened_model import open_model
from var_tokenizer.common import InputError

torch = pytest.importorskip("torch")

TOKENIZER, TRANSFORMER = tiny.tokenizer(), tiny.transformer()

SUFFIXES = [".pth", ".ckpt", ".safetensors"]


@pytest.mark.parametrize(
    "args",
    [["--only", "tokenizer"], ["--scales", "1,2,4"], ["--heads", "4"], ["--heads", "0"]],
)
def test_a_request_that_the_file_contradicts_is_refused(refused, files, tmp_path, args):
    message = refused(files[".pth"], tmp_path / "o.safetensors", *args)
    assert "expected" in message


@pytest.mark.parametrize("changes", [{"heads": 0}, {"scales": ()}])
def test_zero_heads_and_empty_scales_are_refused(files, changes):
    with pytest.raises(InputError, match=r"expected (an integer of )?at least"):
        open_model(files[".pth"], **changes)


def test_a_trainer_checkpoint_with_two_models_asks_which(refused, tmp_path, save_pth):
    _, vae = save_pth(TOKENIZER)
    _, var = save_pth(TRANSFORMER)
    torch.save({"trainer": {"var_wo_ddp": var, "vae_local": vae}}, tmp_path / "both.pth")
    message = refused(tmp_path / "both.pth", tmp_path / "o.ckpt")
    assert "--only tokenizer" in message and "--only transformer" in message


def test_a_foreign_tokenizer_of_many_scales_asks_for_them(refused, tmp_path, save_pth):
    hits = torch.zeros(11, 32)
    path, _ = save_pth(TOKENIZER, change=lambda s: {**s, "quantize.ema_vocab_hit_SV": hits})
    assert "--scales" in refused(path, tmp_path / "o.ckpt")
    scales = ["--scales", "1,2,3,4,5,6,7,8,9,10,11"]
    assert main([str(path), str(tmp_path / "o.ckpt"), *scales]) == 0


@pytest.mark.parametrize("scales", ["", "1,a", "1,2x3x4", "3,2", "0"])
def test_malformed_scales_are_refused(refused, files, tmp_path, scales):
    message = refused(files[".pth"], tmp_path / "o.ckpt", "--scales", scales)
    assert "scales" in message


def test_a_target_that_exists_is_kept_without_force(refused, files, tmp_path):
    target = tmp_path / "there.safetensors"
    target.write_text("precious")
    assert "--force" in refused(files[".pth"], target)
    assert target.read_text() == "precious"
    assert main([str(files[".pth"]), str(target), "--force"]) == 0
    assert inspect(target).config == TRANSFORMER


def test_a_target_that_no_file_can_be_is_refused(refused, files, tmp_path):
    (tmp_path / "o.ckpt").mkdir()
    (tmp_path / "file").touch()
    for target, reason in {
        "o.txt": "'.txt'",
        "o.ckpt": "folder",
        "file/o.ckpt": "cannot write",
    }.items():
        assert reason in refused(files[".pth"], tmp_path / target)


def test_a_full_disk_is_noticed_before_anything_is_written(refused, files, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5, 5))
    message = refused(files[".pth"], tmp_path / "o.safetensors")
    assert "free" in message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_up_leaves_no_partial_target(refused, files, tmp_path, capfd, suffix):
    target = tmp_path / f"o{suffix}"
    target.write_text("precious")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as if the disk ended there
    try:
        message = refused(files[".safetensors"], target, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write" in message
    assert "[CRITICAL]" not in capfd.readouterr().err  # of MindSpore, beside our line
    assert target.read_text() == "precious"
