"""Every command that wants a native file says what to do with another format's."""

import json
import shlex
import shutil
import zipfile

import numpy as np
import pytest
from command_line import call, words
from PIL import Image
from safetensors.numpy import load_file, save_file
from var_transformer import Transformer


@pytest.fixture
def files(pair, tmp_path):
    for name in ("m.safetensors", "t.safetensors"):
        shutil.copy(pair / name, tmp_path)
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}q\x00.")
    # a MindSpore checkpoint: a message of a name and a tensor
    (tmp_path / "x.ckpt").write_bytes(b"\n\x0c\n\x06blocks\x12\x02\x08\x01")
    save_file({"blocks.0": np.zeros(1, np.float32)}, tmp_path / "x.safetensors", {"format": "pt"})
    Image.new("RGB", (6, 6)).save(tmp_path / "i.png")
    return tmp_path


def refusal(caplog, command, *options):
    """What the command logs on its way out with status 2."""
    caplog.clear()
    assert call(command, *options) == 2
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    return message


COMMANDS = ("sample", "edit", "serve")
OPTIONS = [(command, option) for command in COMMANDS for option in ("tokenizer", "model")]
OPTIONS += [("sample", "refiner")]


@pytest.mark.parametrize("foreign", ["x.pth", "x.ckpt", "x.safetensors"])
@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_another_format_is_refused_with_a_command(files, caplog, command, option, foreign):
    if command == "serve":
        pytest.importorskip("gradio")
    given = {option: files / foreign}
    if option == "refiner":
        given["refined-scales"] = 1
    if command == "sample":
        options = words(files, files / "out", classes=1, **given)
    elif command == "edit":
        given |= {"class": 1, "image": files / "i.png"}
        options = [*words(files, files / "out", **given), "--box", 0, 0, 4, 4]
    else:
        options = words(files, None, **given)
    message = refusal(caplog, command, *options)
    kind = "tokenizer" if option == "tokenizer" else "transformer"
    assert str(files / foreign) in message and f"expected a native {kind}" in message
    suggested = shlex.split(message.rpartition(": ")[2])
    assert suggested[:2] == ["var-convert", str(files / foreign)]
    assert suggested[-2:] == ["--only", kind]
    assert not (files / "out").exists()


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "a\nERROR: faked", "\u202egnp", "\x9b2J"])
def test_names_in_a_model_reach_no_terminal_as_they_are(files, caplog, name):
    tensors = load_file(files / "m.safetensors") | {name: np.zeros(1, np.float32)}
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
        path = files / f"{number}{name}.safetensors"
        save_file(held, path, metadata)
        options = words(files, files / "out", classes=1, model=path)
        assert refusal(caplog, "sample", *options).isprintable()


def test_a_tokenizer_of_the_same_shape_is_refused_by_a_command(files, caplog):
    model = Transformer.load(files / "m.safetensors")
    model.tokenizer_checksum = "sha256:" + "0" * 64
    model.save(files / "m.safetensors")
    message = refusal(caplog, "sample", *words(files, files / "out", classes=1))
    assert "expected the tokenizer that it was trained with" in message
    assert not (files / "out").exists()
