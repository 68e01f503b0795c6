"""A file made to do harm runs no code, takes no memory and writes nothing to a terminal."""

import json
import os
import pickle
import shutil
import tracemalloc
import zipfile
from collections import OrderedDict

import mindspore
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from var_convert import verify
from var_convert.cli import main

torch = pytest.importorskip("torch")

SUFFIXES = [".pth", ".ckpt", ".safetensors"]


class Hostile:
    """Runs a command where a pickle of it is loaded without care."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["top", "value", "trainer"])
def test_nothing_in_a_hostile_pth_runs(refused, tmp_path, place, legacy):
    touched = tmp_path / "touched"
    hostile = Hostile(f"touch {touched}")
    loads = {
        "top": hostile,
        "value": {"a": hostile},
        "trainer": {"trainer": {"vae_local": hostile}},
    }
    path = tmp_path / "hostile.pth"
    torch.save(loads[place], path, _use_new_zipfile_serialization=not legacy)
    message = refused(path, tmp_path / "o.safetensors")
    assert str(path) in message and "system" in message
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists()  # so it would have run


def test_nothing_in_a_plain_hostile_pickle_runs(refused, tmp_path):
    touched = tmp_path / "touched"
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile(f"touch {touched}")))
    refused(tmp_path / "hostile.pth", tmp_path / "o.safetensors")
    assert not touched.exists()


DEEP = "[" * 100_000


def native(kind, config):
    return {"format": "var-mindspore", "kind": kind, "config": config}


def written(folder, suffix, tensors, metadata):
    """A file of that format with ``tensors`` (numpy) and ``metadata``, whatever they say."""
    path = folder / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path, metadata)
    elif suffix == ".pth":
        state = OrderedDict((name, torch.from_numpy(a)) for name, a in tensors.items())
        state.var_mindspore = metadata
        torch.save(state, path)
    else:
        parameters = [{"name": n, "data": mindspore.Tensor(a)} for n, a in tensors.items()]
        mindspore.save_checkpoint(parameters, str(path), append_dict=metadata)
    return path


CLAIMS = {
    "no kind": {"format": "var-mindspore"},
    "no configuration": {"format": "var-mindspore", "kind": "transformer"},
    "another kind": native("painting", "{}"),
    "a kind that the tensors are not": native("tokenizer", "{}"),
    "no JSON": native("transformer", "no json"),
    "a word for a number": native("transformer", '{"depth": "two"}'),
    "an unknown field": native("transformer", '{"deepness": 2}'),
    "another depth": native("transformer", '{"depth": 3}'),
    "many shared convolutions": native("tokenizer", '{"phi_count": 999999999}'),
    "deep": native("transformer", DEEP),
    "deep in a field": native("transformer", f'{{"scales": {DEEP}'),
    "33 TiB of channels": native("tokenizer", '{"channels": 1000000}'),
    "a vast codebook": native("tokenizer", '{"vocab_size": 1000000000000}'),
    "a vast transformer": native("transformer", '{"depth": 1000000000}'),
    "many scales": native("transformer", json.dumps({"scales": [1] * 10**6})),
    "one vast scale": native("transformer", '{"scales": [99999]}'),
    "a vast scale": native("tokenizer", '{"scales": [1, 1000000000]}'),
    "a name that is there twice": native("transformer", '{"depth": 1, "depth": 2}'),
    "not a number": native("transformer", '{"depth": NaN}'),
    "escape sequences": native("transformer", '{"\\u001b[2J\\n": 1}'),
    "escape sequences as the kind": native("\x1b[2J\n", "{}"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("metadata", CLAIMS.values(), ids=CLAIMS)
def test_what_metadata_claims_is_checked_against_the_tensors(refused, tmp_path, metadata, suffix):
    tensors = {"head.bias": np.zeros(3, np.float32)}
    path = written(tmp_path, suffix, tensors, metadata)
    message = refused(path, tmp_path / "o.ckpt")
    assert str(path) in message and message.isprintable() and len(message) < 3000


NOTES = {
    "deep names": {"class_names": DEEP},
    "too few names": {"class_names": '["a"]'},
    "numbers for names": {"class_names": "[1, 2, 3, 4, 5]"},
    "no checksum": {"tokenizer": "\x1b[2J"},
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("notes", NOTES.values(), ids=NOTES)
def test_malformed_notes_are_refused(refused, files, tmp_path, notes, suffix):
    with safe_open(files[".safetensors"], framework="numpy") as file:
        metadata = file.metadata() | notes
    path = written(tmp_path, suffix, load_file(files[".safetensors"]), metadata)
    message = refused(path, tmp_path / "o.ckpt")
    assert str(path) in message and message.isprintable() and next(iter(notes)) in message


BAD_NAMES = {
    "an escape sequence": "\x1b]0;owned\x07\x1b[2J",
    "a faked line": "x\nERROR: all is lost\r",
    "a right-to-left override": "\u202egnp\u2066",
    "one byte controls": "\x9b2J\x7f\b",
    "markup": "[red]x[/red][link=https://example.org]y[/link][/]",
}


def shown(capsys, caplog):
    """All that a command printed and logged."""
    found = capsys.readouterr()
    return found.out + found.err + "\n".join(r.getMessage() for r in caplog.records) + "\n"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
@pytest.mark.parametrize("place", ["tensor", "native tensor", "foreign model", "metadata"])
def test_names_in_files_are_shown_escaped(files, tmp_path, caplog, capsys, name, suffix, place):
    tensors, metadata = load_file(files[".safetensors"]), {}
    if place != "tensor":
        with safe_open(files[".safetensors"], framework="numpy") as file:
            metadata = file.metadata()
    if place == "foreign model":
        tensors, metadata = {}, {}
    if place == "metadata":
        metadata |= {"class_names": json.dumps([name] * 5), name: name}
    else:
        tensors[name] = np.zeros(3, np.float32)
    path = written(tmp_path, suffix, tensors, metadata)
    status = 0 if place == "metadata" else 2
    assert main([str(path), str(tmp_path / "o.ckpt"), "--force"]) == status
    assert main(["inspect", str(path)]) == status
    assert main(["verify", str(path), str(files[".ckpt"])]) == status
    text = shown(capsys, caplog)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\nERROR: all" not in text
    assert main(["inspect", str(path), "--json"]) == status
    if status == 0:
        assert json.loads(capsys.readouterr().out)["class_names"] == [name] * 5


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_of_files_are_shown_escaped(files, tmp_path, caplog, capsys, name):
    folder = tmp_path / name.replace("/", "|")
    folder.mkdir()
    path = folder / f"{folder.name}.safetensors"
    shutil.copy(files[".safetensors"], path)
    other = folder / f"{folder.name} 2.safetensors"
    assert main([str(path), str(other)]) == 0
    assert main(["inspect", str(path)]) == 0
    assert main(["verify", str(path), str(other)]) == 0
    assert main(["inspect", str(folder / "missing.safetensors")]) == 2
    assert main([str(path), str(other)]) == 2
    other.write_bytes(b"damaged")
    assert main(["verify", str(path), str(other)]) == 2
    text = shown(capsys, caplog)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\nERROR: all" not in text
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(path)


def test_a_file_name_that_is_not_utf8_is_shown_escaped(files, tmp_path, capsys):
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    shutil.copy(files[".safetensors"], path)
    assert main(["inspect", str(path)]) == 0
    # a long title has several lines
    assert r"caf\xe9.safetensors" in "".join(capsys.readouterr().out.split())
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(path)


def test_a_pth_with_deeply_nested_keys_is_refused(refused, tmp_path):
    key = ()
    for _ in range(900):  # as deep as a pickle can be written
        key = (key,)
    torch.save({key: torch.zeros(1), "x": 1}, tmp_path / "deep.pth")
    message = refused(tmp_path / "deep.pth", tmp_path / "o.ckpt")
    assert "a tuple" in message


def test_a_compressed_pth_is_refused_unread(refused, files, tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(files[".pth"]) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            if member.filename.endswith("data.pkl"):
                data = data[:-1] + b"N0" * (50 * 2**20) + b"."
            target.writestr(member.filename, data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        message = refused(path, tmp_path / "o.ckpt")
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()
    assert "compressed" in message


class Claiming:
    """A tensor of more elements than its storage holds."""

    def __reduce__(self):
        storage = torch.storage.TypedStorage(4, dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (storage, 0, (10**13,), (1,), False, OrderedDict())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_tensor_that_claims_more_than_its_storage_is_refused(refused, tmp_path, legacy):
    path = tmp_path / "vast.pth"
    torch.save({"head.bias": Claiming()}, path, _use_new_zipfile_serialization=not legacy)
    message = refused(path, tmp_path / "o.ckpt")
    assert str(path) in message


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_of_several_is_refused(refused, files, tmp_path):
    state = dict(torch.load(files[".pth"], weights_only=True))
    state["head.bias"] = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    torch.save(state, tmp_path / "nested.pth")
    assert "head.bias is torch.float32, nested" in refused("inspect", tmp_path / "nested.pth")


def test_a_tensor_that_is_noted_as_negative_is_read_as_that(files, tmp_path):
    state = dict(torch.load(files[".pth"], weights_only=True))
    state["head.bias"] = torch._neg_view(-state["head.bias"])
    torch.save(state, tmp_path / "negative.pth")
    assert verify(tmp_path / "negative.pth", files[".pth"]).agrees()


def test_a_name_longer_than_the_systems_is_refused(refused, tmp_path):
    assert "cannot read" in refused("a" * 300, tmp_path / "x.ckpt")
    for target in ("a" * 300, f"{'a' * 300}.pth"):
        for command in ((), ("training",)):
            assert "too long" in refused(*command, tmp_path / "x.pth", tmp_path / target)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"head.bias": f"{'a' * 300}.pth"}}))
    assert "cannot read" in refused("inspect", index)
