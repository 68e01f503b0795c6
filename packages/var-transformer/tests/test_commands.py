"""What holds for all commands of the package, as a user meets them."""

import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import tyro
from command_line import call, start, words
from PIL import Image
from var_transformer import BackendConfig, Transformer
from var_transformer.ascend_c.__main__ import BuildConfig
from var_transformer.attention import AscendAttention
from var_transformer.cost.__main__ import CostConfig
from var_transformer.edit import __main__ as edit_command
from var_transformer.generation.generate import Generation
from var_transformer.sample import SampleConfig, make_plan
from var_transformer.serve import ServeConfig


@pytest.mark.slow
def test_ctrl_c_while_a_command_compiles_is_one_line(pair, tmp_path):
    options = {"classes": "0-4", "per-class": 500, "batch": 8}
    command = words(pair, tmp_path / "out", **options)
    with (tmp_path / "stderr.txt").open("w") as file:
        process = start("sample", *command, stderr=file, cwd=tmp_path, cache=tmp_path / "cache")
    while not (tmp_path / "out" / "settings.json").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    lines = (tmp_path / "stderr.txt").read_text().splitlines()
    assert lines[-1] == "ERROR: interrupted; the same command continues"
    assert all(text.startswith("INFO: sampling: ") for text in lines[:-1])
    assert not (tmp_path / "rank_0").exists()


def test_edit_logs_that_it_loads_and_draws(pair, tmp_path, monkeypatch, caplog):
    def drawn(*_arguments, **_more):
        time.sleep(0.05)
        return Generation(np.zeros((1, 3, 6, 6)), [])

    monkeypatch.setattr("var_tokenizer.common.progress.next_line", lambda elapsed: 0.0001)
    monkeypatch.setattr(edit_command, "edit", drawn)
    caplog.set_level(logging.INFO)
    Image.new("RGB", (6, 6)).save(tmp_path / "image.png")
    options = words(pair, tmp_path / "out", image=tmp_path / "image.png", **{"class": 1})
    assert call("edit", *options, "--box", 0, 0, 3, 6) == 0
    for what in ("loading the models", "drawing"):
        assert re.search(f"^{what}: 0:00 so far$", "\n".join(caplog.messages), re.MULTILINE)


def test_a_package_lists_its_commands(capsys):
    runpy.run_module("var_transformer", run_name="__main__")
    shown = capsys.readouterr().out
    listed = {line.split(".")[1] for line in shown.splitlines() if line.startswith("python -m")}
    assert listed == {"sample", "edit", "serve", "cost", "ascend_c", "check_ascend"}


@pytest.fixture
def drawing(pair, monkeypatch):
    """Loads the models that ``sample`` (with a refiner), ``edit`` and ``serve`` draw with."""
    files = {"tokenizer": pair / "t.safetensors", "model": pair / "m.safetensors"}
    edited = {"image": pair / "image.png", "label": "1", "box": (0, 0, 3, 6)}

    def load(target: str, dtype: str | None) -> list[Transformer]:
        monkeypatch.setattr(ms, "get_context", lambda _: target)
        options = files | {"out": pair / "out", "dtype": dtype}
        small = {"refiner": files["model"], "refined_scales": 1}
        plan = make_plan(SampleConfig(**options, **small, classes="1"))
        editing = edit_command.EditConfig(**options, **edited).load()[0]
        serving = ServeConfig(**files, dtype=dtype).load()[0]
        return [plan.model, plan.refiner.model, editing, serving]

    return load


@pytest.mark.parametrize(
    ("target", "dtype", "products", "fused"),
    [
        ("Ascend", None, ms.float16, True),
        ("Ascend", "bfloat16", ms.bfloat16, True),
        ("Ascend", "float32", ms.float32, False),
        ("CPU", "float16", ms.float16, False),
    ],
)
def test_commands_draw_in_half_with_fused_attention_on_an_ascend_unless_dtype_says_otherwise(
    drawing, target, dtype, products, fused
):
    for model in drawing(target, dtype):
        assert (model.backend.dtype, model.backend.fused) == (products, fused)
        assert isinstance(model.blocks[0].attn.attend, AscendAttention) is fused
        assert model.head.linear.dtype == products


def test_commands_draw_in_float32_on_a_cpu(drawing):
    assert {model.backend for model in drawing("CPU", None)} == {BackendConfig()}


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("CPU", ("--dtype", "bfloat16"), "dtype is bfloat16; expected float32 or float16 on a CPU"),
        ("Ascend", (), r"head width is 8; .* take multiples of 16 .*\(products of dtype float32"),
    ],
)
def test_a_type_or_a_head_width_that_the_device_lacks_ends_a_command_with_2(
    pair, tmp_path, monkeypatch, caplog, target, options, message
):
    monkeypatch.setattr(ms, "get_context", lambda _: target)
    out = tmp_path / "out"
    same = words(pair, out, model=pair / "small.safetensors", classes=1)  # heads of 8 channels
    assert call("sample", *same, *options) == 2 and not out.exists()
    (record,) = caplog.records
    assert re.search(message, record.getMessage())


@pytest.mark.parametrize(
    "kind", [SampleConfig, edit_command.EditConfig, ServeConfig, CostConfig, BuildConfig]
)
def test_help_does_not_mention_exceptions(capsys, kind):
    with pytest.raises(SystemExit) as end:
        tyro.cli(kind, args=["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "Raises" not in text and "InputError" not in text


@pytest.mark.parametrize("words", [["var_transformer"], ["var_transformer.sample", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_output_is_full_ends_with_one_line_and_2(words, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered, "GLOG_v": "3"}
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    assert process.returncode == 2
    assert process.stderr == ("ERROR: No space left on device; expected room for what is written\n")


def test_a_command_whose_reader_has_gone_ends_without_a_traceback():
    """As ``--help | head`` does; the command writes long after its reader has gone."""
    command = [sys.executable, "-m", "var_transformer.sample", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
