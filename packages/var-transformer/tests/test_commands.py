"""What holds for all commands of the package, as a user meets them."""

import logging
import os
import re
import runpy
import signal
import subprocess
import sys

import pytest
import tyro
from PIL import Image
from var_transformer.ascend_c.__main__ import BuildConfig
from var_transformer.cost.__main__ import CostConfig
from var_transformer.edit.__main__ import EditConfig
from var_transformer.edit.__main__ import run as edit
from var_transformer.sample import SampleConfig
from var_transformer.serve import ServeConfig


@pytest.mark.slow
def test_ctrl_c_while_a_command_compiles_is_one_line(model, tokenizer, tmp_path):
    model.save(tmp_path / "m.safetensors")
    tokenizer.save(tmp_path / "t.safetensors")
    words = (
        "--tokenizer t.safetensors --model m.safetensors --classes 0-4 --per-class 500 --out out"
    )
    with (tmp_path / "stderr.txt").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "var_transformer.sample", *words.split(), "--batch", "8"],
            stderr=file,
            cwd=tmp_path,
            env=os.environ | {"GLOG_v": "3", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
    while not (tmp_path / "out" / "settings.json").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    lines = (tmp_path / "stderr.txt").read_text().splitlines()
    assert lines[-1] == "ERROR: interrupted; the same command continues"
    assert all(text.startswith("INFO: sampling: ") for text in lines[:-1])
    assert not (tmp_path / "rank_0").exists()


def test_edit_logs_that_it_loads_and_draws(model, tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("var_tokenizer.common.progress.next_line", lambda elapsed: 0.0001)
    caplog.set_level(logging.INFO)
    model.save(tmp_path / "m.safetensors")
    tokenizer.save(tmp_path / "t.safetensors")
    Image.new("RGB", (6, 6)).save(tmp_path / "image.png")
    names = {"tokenizer": "t.safetensors", "model": "m.safetensors", "image": "image.png"}
    files = {option: tmp_path / name for option, name in names.items()}
    edit(EditConfig(**files, label="1", out=tmp_path / "out", box=(0, 0, 3, 6)))
    for what in ("loading the models", "drawing"):
        assert re.search(f"^{what}: 0:00 so far$", "\n".join(caplog.messages), re.MULTILINE)


def test_a_package_lists_its_commands(capsys):
    runpy.run_module("var_transformer", run_name="__main__")
    shown = capsys.readouterr().out
    listed = {line.split(".")[1] for line in shown.splitlines() if line.startswith("python -m")}
    assert listed == {"sample", "edit", "serve", "cost", "ascend_c"}


@pytest.mark.parametrize("kind", [SampleConfig, EditConfig, ServeConfig, CostConfig, BuildConfig])
def test_no_help_talks_of_exceptions(capsys, kind):
    with pytest.raises(SystemExit) as end:
        tyro.cli(kind, args=["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "Raises" not in text and "InputError" not in text


def test_a_command_whose_reader_has_gone_ends_without_a_traceback():
    """As ``--help | head`` does; the command writes long after its reader has gone."""
    command = [sys.executable, "-m", "var_transformer.sample", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
