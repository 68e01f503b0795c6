"""Files of other formats, and names that are made to hurt a terminal, in every command."""

import importlib
import json
import logging
import os
import shlex
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, Snapshot, arrays_checksum
from var_train.data.cache_index import CacheIndex
from var_train.reports.json_files import changed_settings, record_settings
from var_train.reports.metrics_log import MetricsLog
from var_train.training.checkpoints import CheckpointFolder
from var_transformer import Transformer

CONFIG = tiny.tokenizer(scales=(1, 2, 4))
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(monkeypatch, caplog, capfd) -> Call:
    """Runs a command in this process: its exit code, and all that it printed and logged."""

    def run(module: str, *words: object) -> tuple[int, str]:
        caplog.clear()
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
        code = 0
        try:
            importlib.import_module(f"var_train.{module}").main()
        except SystemExit as end:
            code = end.code or 0
        shown = capfd.readouterr()
        said = [r.getMessage() for r in caplog.records]
        return code, "\n".join([shown.out, shown.err, *said])

    return run


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    Tokenizer(CONFIG).save(tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


def images(folder: Path, *names: str) -> Path:
    for split in ("train", "val"):
        (folder / split / "cat").mkdir(parents=True)
        for name in ("0.png", "1.png", *names):
            Image.new("RGB", (8, 8), "red").save(folder / split / "cat" / name, "PNG")
    return folder


def pytorch(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}q\x00.")
    return path


def old_pytorch(path: Path) -> Path:
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02}q\x00.")
    return path


def mindspore(path: Path) -> Path:
    path.with_suffix(".ckpt").write_bytes(b"\n\x0c\n\x06blocks\x12\x02\x08\x01")
    return path.with_suffix(".ckpt")


def other_safetensors(path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    save_file({"blocks.0": np.zeros(1, np.float32)}, path, {"format": "pt"})
    return path


COMMANDS = {
    "run --init": ("run", ("--init",), "transformer"),
    "run --tokenizer-file": ("run", ("--stage", "transformer", "--tokenizer-file"), "tokenizer"),
    "tokenize": ("tokenize", ("--data", "data", "--tokenizer"), "tokenizer"),
    "evaluate": ("evaluate", ("tokenizer", "--data", "data", "--tokenizer"), "tokenizer"),
}


@pytest.mark.parametrize("write", [pytorch, old_pytorch, mindspore, other_safetensors])
@pytest.mark.parametrize(("module", "words", "kind"), COMMANDS.values(), ids=COMMANDS)
def test_another_format_is_refused_with_the_command_to_type(
    tmp_path, monkeypatch, call, module, words, kind, write
):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "data")
    path = write(tmp_path / "their model.pth")
    code, said = call(module, *words, path, "--out", tmp_path / "out")
    (line,) = [line for line in said.splitlines() if "expected a native" in line]
    assert code == 2 and f"{path}: " in line and f"a native {kind}" in line
    command = shlex.split(line.rpartition(": ")[2])
    assert command[:2] == ["var-convert", str(path)] and command[-2:] == ["--only", kind]
    assert not (tmp_path / "out").exists()


def test_a_pth_feature_network_is_refused_with_the_command_to_type(tmp_path, tokenizer, call):
    network = pytorch(tmp_path / "vgg.pth")
    words = ("--data", images(tmp_path / "data"), "--tokenizer", tokenizer, "--out", tmp_path / "o")
    code, said = call("evaluate", "tokenizer", *words, "--feature-network", network)
    assert code == 2 and f"{network}: a PyTorch checkpoint" in said and "python -c" in said
    code, said = call(
        "run", "--train-tokenizer.losses.feature-network", network, "--out", tmp_path / "o"
    )
    assert code == 2 and f"{network}: a PyTorch checkpoint" in said
    assert not (tmp_path / "o").exists()


NAMES = {
    "an escape sequence": "\x1b]0;owned\x07\x1b[2J",
    "one byte controls": "\x9b2J\x7f\b",
    "a faked line": "x\nERROR: all is lost\r",
    "a right-to-left override": "\u202egnp\u2066",
    "markup": "[red]x[|red][link=https:||example.org]y[|link][|]",
    "no UTF-8": os.fsdecode(b"caf\xe9"),
}


def harmless(said: str) -> bool:
    """Whether what was said has neither control characters nor a line that a name faked."""
    lines = said.split("\n")
    return all(line.isprintable() for line in lines) and not any(
        line.startswith("ERROR: all") for line in lines
    )


def test_names_of_images_reach_no_terminal_as_they_are(tmp_path, tokenizer, call):
    every = "".join(NAMES.values())
    data = images(tmp_path / f"data{every}", *(f"{name}.png" for name in NAMES.values()))
    for split in ("train", "val"):
        for name in (*NAMES.values(), every):
            (data / split / f"{name}z").mkdir()
            Image.new("RGB", (8, 8)).save(data / split / f"{name}z" / "0.png")
            (data / split / "cat" / f"9.{name}").write_bytes(b"unknown")
        (data / split / "cat" / f"{every}.webp").write_bytes(b"damaged")
    out = tmp_path / f"out{every}"
    words = ("--data", data, "--tokenizer", tokenizer, "--out", out)
    code, said = call("tokenize", *words, "--batch", 2)
    assert code == 0 and "damaged" not in said and harmless(said), said
    assert "unreadable" in said  # so the name was shown
    code, said = call("evaluate", "tokenizer", *words, "--batch", 2)
    assert code == 0 and "unreadable" in said and harmless(said), said
    code, said = call("tokenize", "--data", data / "none", *words[2:])
    assert code == 2 and harmless(said), said
    code, said = call("run", "--stage", "tokenizer", *words[:2], "--out", out, "--seed", "x")
    assert code == 2 and harmless(said), said


def test_names_in_models_reach_no_terminal_as_they_are(tmp_path, tokenizer, call):
    name = "".join(NAMES.values()).encode("utf-8", "replace").decode()
    data = images(tmp_path / "data")
    own = {"format": "var-mindspore", "kind": "tokenizer"}
    bad = tmp_path / f"bad{name}.safetensors"
    for metadata in (
        own | {"config": json.dumps({name: 1})},
        own | {"config": "{}"},
        own | {"kind": name},
        {name: name},
    ):
        save_file({name: np.zeros(1, np.float32)}, bad, metadata)
        out = ("--out", tmp_path / "out")
        for module, words in (
            ("tokenize", ("--data", data, "--tokenizer", bad)),
            ("evaluate", ("tokenizer", "--data", data, "--tokenizer", bad)),
            ("run", ("--init", bad)),
            ("run", ("--stage", "transformer", "--tokenizer-file", bad)),
        ):
            code, said = call(module, *words, *out)
            assert code == 2 and harmless(said), said
    assert not (tmp_path / "out").exists()


def test_class_names_in_a_model_reach_no_terminal_as_they_are(tmp_path, tokenizer, call):
    model = Transformer(tiny.transformer(depth=1, num_classes=1, scales=(1, 2, 4)))
    model.class_names = ("\x1b[2J\nERROR: all",)
    model.save(tmp_path / "init.safetensors")
    words = ("--init", tmp_path / "init.safetensors", "--tokenizer-file", tokenizer)
    words += ("--data", images(tmp_path / "data"), "--train-transformer.batch", 1)
    words += ("--loop.judge.samples", 100, "--loop.judge.network", tmp_path / "none.safetensors")
    code, said = call("run", "--stage", "transformer", *words, "--out", tmp_path / "out")
    assert code == 2 and "have other names" in said and harmless(said), said


DEEP = "[" * 100_000


def test_deep_json_counts_as_damage(tmp_path, caplog):
    (tmp_path / "index.json").write_text(DEEP)
    with pytest.raises(InputError, match=r"index\.json: no index of a token cache"):
        CacheIndex.read(tmp_path)
    (tmp_path / "settings.json").write_text(DEEP)
    assert changed_settings(tmp_path, {"seed": 1}) == {}
    record_settings(tmp_path, {"seed": 1})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 1}
    (tmp_path / "metrics.jsonl").write_text(f"{DEEP}\n")
    MetricsLog(tmp_path, resume=True).close()
    folder = CheckpointFolder(tmp_path / "checkpoints")
    whole = Snapshot(1, {"a": np.zeros(1, np.float32)}, {"loss": 0.5})
    path = folder.save(whole)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | {"state": DEEP, "best": DEEP}
    arrays = {"a": np.zeros(1, np.float32)}
    metadata["sha256"] = arrays_checksum(arrays, f"2 {DEEP}")
    save_file(arrays, path.with_name("step-000000002.safetensors"), metadata | {"step": "2"})
    assert folder.newest().step == 1 and folder.peek()[0] == 1 and folder.best() is None
    assert "step-000000002.safetensors: damaged" in caplog.text
