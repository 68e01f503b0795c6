"""Every command that wants a native file says what to do with another format's."""

import importlib
import json
import shlex
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from var_transformer import Transformer


@pytest.fixture
def pair(model, tokenizer, tmp_path):
    model.save(tmp_path / "m.safetensors")
    tokenizer.save(tmp_path / "t.safetensors")
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}q\x00.")
    # a MindSpore checkpoint: a message of a name and a tensor
    (tmp_path / "x.ckpt").write_bytes(b"\n\x0c\n\x06blocks\x12\x02\x08\x01")
    save_file({"blocks.0": np.zeros(1, np.float32)}, tmp_path / "x.safetensors", {"format": "pt"})
    Image.new("RGB", (6, 6)).save(tmp_path / "i.png")
    return tmp_path


def refusal(monkeypatch, caplog, module, *words):
    """What the command logs on its way out with status 2."""
    caplog.clear()
    main = importlib.import_module(f"var_transformer.{module}").main
    monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    return message


MODULES = ("sample", "edit.__main__", "serve")
OPTIONS = [(module, option) for module in MODULES for option in ("tokenizer", "model")]
OPTIONS += [("sample", "refiner")]


@pytest.mark.parametrize("foreign", ["x.pth", "x.ckpt", "x.safetensors"])
@pytest.mark.parametrize(("module", "option"), OPTIONS)
def test_another_format_is_refused_with_the_command_to_type(
    pair, monkeypatch, caplog, module, option, foreign
):
    if module.startswith("serve"):
        pytest.importorskip("gradio")
    files = {"tokenizer": pair / "t.safetensors", "model": pair / "m.safetensors"}
    words = {
        "sample": ["--classes", "1", "--out", pair / "out"],
        "edit.__main__": ["--class", "1", "--out", pair / "out", "--image", pair / "i.png"],
    }.get(module, [])
    if option == "refiner":
        words += ["--refined-scales", "1"]
    words += [w for name, p in (files | {option: pair / foreign}).items() for w in (f"--{name}", p)]
    if module == "edit.__main__":
        words += ["--box", 0, 0, 4, 4]
    message = refusal(monkeypatch, caplog, module, *words)
    kind = "tokenizer" if option == "tokenizer" else "transformer"
    assert str(pair / foreign) in message and f"expected a native {kind}" in message
    command = shlex.split(message.rpartition(": ")[2])
    assert command[:2] == ["var-convert", str(pair / foreign)]
    assert command[-2:] == ["--only", kind]
    assert not (pair / "out").exists()


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "a\nERROR: faked", "\u202egnp", "\x9b2J"])
def test_names_in_a_model_reach_no_terminal_as_they_are(pair, monkeypatch, caplog, name):
    tensors = load_file(pair / "m.safetensors") | {name: np.zeros(1, np.float32)}
    config = json.dumps({"depth": 2, name: 1})
    own = {"format": "var-mindspore", "kind": "transformer"}
    for number, (held, metadata) in enumerate(
        [
            (tensors, own | {"config": json.dumps({"depth": 1})}),
            (tensors, own | {"config": config}),
            (tensors, own | {"kind": name}),
            (tensors, {name: name}),
        ]
    ):
        path = pair / f"{number}{name}.safetensors"
        save_file(held, path, metadata)
        files = ["--tokenizer", pair / "t.safetensors", "--model", path]
        words = [*files, "--classes", "1", "--out", pair / "out"]
        assert refusal(monkeypatch, caplog, "sample", *words).isprintable()


def test_a_tokenizer_of_the_same_shape_is_refused_by_a_command(pair, monkeypatch, caplog):
    model = Transformer.load(pair / "m.safetensors")
    model.tokenizer_checksum = "sha256:" + "0" * 64
    model.save(pair / "m.safetensors")
    files = ["--tokenizer", pair / "t.safetensors", "--model", pair / "m.safetensors"]
    message = refusal(
        monkeypatch, caplog, "sample", *files, "--classes", "1", "--out", pair / "out"
    )
    assert "expected the tokenizer that it was trained with" in message
    assert not (pair / "out").exists()
