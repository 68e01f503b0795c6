"""What is unusable is refused in one clear line, with exit code 2 and no trace."""

import argparse
import itertools
import json
import logging
import os
import pickle
import resource
import shutil
import tracemalloc
import zipfile
from collections import OrderedDict, namedtuple

import mindspore
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from var_convert import convert, inspect
from var_convert.cli import main
from var_convert.opened_model import open_model
from var_tokenizer.common import InputError

torch = pytest.importorskip("torch")

TOKENIZER, TRANSFORMER = tiny.tokenizer(), tiny.transformer()

SUFFIXES = [".pth", ".ckpt", ".safetensors"]


@pytest.fixture(scope="module")
def files(tmp_path_factory, random_model):
    """The small transformer in each format: suffix -> path."""
    folder = tmp_path_factory.mktemp("files")
    torch.save(dict(random_model(TRANSFORMER).state_dict()), folder / "model.pth")
    for suffix in SUFFIXES[1:]:
        convert(folder / "model.pth", folder / f"model{suffix}")
    return {suffix: folder / f"model{suffix}" for suffix in SUFFIXES}


def refused(caplog, *args, folder=None):
    """Runs the command, checks that it refuses without a trace, and returns its one line."""
    before = sorted(folder.rglob("*")) if folder else []
    caplog.clear()
    assert main([str(arg) for arg in args]) == 2
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1 and "\n" not in errors[0]
    assert (sorted(folder.rglob("*")) if folder else []) == before
    return errors[0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file(files, tmp_path, caplog, suffix):
    whole = files[suffix].read_bytes()
    for size in (1, 7, 100, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole[:size])
        message = refused(caplog, cut, tmp_path / "out.safetensors", folder=tmp_path)
        assert str(cut) in message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file(tmp_path, caplog, suffix):
    (tmp_path / f"empty{suffix}").touch()
    message = refused(caplog, tmp_path / f"empty{suffix}", tmp_path / "o.ckpt", folder=tmp_path)
    assert "empty" in message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file(tmp_path, caplog, suffix):
    message = refused(caplog, tmp_path / f"no{suffix}", tmp_path / "o.ckpt", folder=tmp_path)
    assert "no such file" in message


@pytest.mark.parametrize("content, suffix", list(itertools.permutations(SUFFIXES, 2)))
def test_a_file_with_the_suffix_of_another_format(files, tmp_path, caplog, content, suffix):
    wrong = tmp_path / f"wrong{suffix}"
    shutil.copy(files[content], wrong)
    assert str(wrong) in refused(caplog, wrong, tmp_path / "o.safetensors", folder=tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES))
def test_random_damage_is_an_input_error_or_harmless(files, tmp_path_factory, data, suffix):
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


class Hostile:
    """Runs a command where a pickle of it is loaded without care."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["top", "value", "trainer"])
def test_nothing_in_a_hostile_pth_runs(tmp_path, caplog, place, legacy):
    touched = tmp_path / "touched"
    hostile = Hostile(f"touch {touched}")
    loads = {
        "top": hostile,
        "value": {"a": hostile},
        "trainer": {"trainer": {"vae_local": hostile}},
    }
    path = tmp_path / "hostile.pth"
    torch.save(loads[place], path, _use_new_zipfile_serialization=not legacy)
    message = refused(caplog, path, tmp_path / "o.safetensors", folder=tmp_path)
    assert str(path) in message and "system" in message
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists()  # so it would have run


def test_nothing_in_a_plain_hostile_pickle_runs(tmp_path, caplog):
    touched = tmp_path / "touched"
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile(f"touch {touched}")))
    refused(caplog, tmp_path / "hostile.pth", tmp_path / "o.safetensors", folder=tmp_path)
    assert not touched.exists()


def test_a_pth_with_foreign_objects_says_which(tmp_path, caplog):
    torch.save({"args": argparse.Namespace(depth=16)}, tmp_path / "args.pth")
    message = refused(caplog, tmp_path / "args.pth", tmp_path / "o.ckpt", folder=tmp_path)
    assert "argparse.Namespace" in message


FOREIGN = {
    "another model": {"conv1.weight": torch.zeros(3)},
    "no tensors": {},
    "a list": [torch.zeros(3)],
    "numbers": {"blocks.0": 3},
    "an empty trainer": {"trainer": {}},
}


@pytest.mark.parametrize("held", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_pth(tmp_path, caplog, held):
    torch.save(held, tmp_path / "foreign.pth")
    message = refused(caplog, tmp_path / "foreign.pth", tmp_path / "o.ckpt", folder=tmp_path)
    assert "expected" in message


def test_a_foreign_safetensors(tmp_path, caplog):
    save_file({"conv1.weight": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    message = refused(
        caplog, tmp_path / "foreign.safetensors", tmp_path / "o.ckpt", folder=tmp_path
    )
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
    "integers": (with_("head.bias", torch.zeros(48, dtype=torch.int64)), "head.bias"),
    "complex": (with_("head.bias", torch.zeros(48, dtype=torch.complex64)), "head.bias"),
    "sparse": (with_("head.bias", torch.zeros(48).to_sparse()), "head.bias"),
    "repeated elements": (with_("head.bias", torch.zeros(1).expand(10**9)), "head.bias"),
    "other mask": (with_("attn_bias_for_masking", torch.zeros(1, 1, 14, 14)), "attn_bias"),
    "other zeros": (with_("blocks.0.attn.zero_k_bias", torch.ones(64)), "zero_k_bias"),
    "unordered levels": (with_("lvl_1L", torch.arange(14).flip(0)[None]), "lvl_1L"),
    "levels that are not square": (with_("lvl_1L", torch.tensor([[0] + 13 * [1]])), "13"),
    "a distant block": (with_("blocks.999999999.attn.q_bias", torch.zeros(64)), "blocks.2."),
}


@pytest.mark.parametrize("change, named", DAMAGED.values(), ids=DAMAGED.keys())
def test_tensors_that_do_not_fit_are_named(save_pth, tmp_path, caplog, change, named):
    path, _ = save_pth(TRANSFORMER, change=change)
    message = refused(caplog, path, tmp_path / "o.safetensors", folder=tmp_path)
    assert str(path) in message and named in message


@pytest.mark.parametrize(
    "args",
    [["--only", "tokenizer"], ["--scales", "1,2,4"], ["--heads", "2"], ["--heads", "0"]],
)
def test_a_request_that_the_file_contradicts(files, tmp_path, caplog, args):
    message = refused(caplog, files[".pth"], tmp_path / "o.safetensors", *args, folder=tmp_path)
    assert "expected" in message


@pytest.mark.parametrize("changes", [{"heads": 0}, {"scales": ()}])
def test_nothing_is_not_the_same_as_not_given(files, changes):
    with pytest.raises(InputError, match=r"expected (an integer of )?at least"):
        open_model(files[".pth"], **changes)


def test_a_trainer_checkpoint_with_two_models_asks_which(tmp_path, caplog, save_pth):
    _, vae = save_pth(TOKENIZER)
    _, var = save_pth(TRANSFORMER)
    torch.save({"trainer": {"var_wo_ddp": var, "vae_local": vae}}, tmp_path / "both.pth")
    message = refused(caplog, tmp_path / "both.pth", tmp_path / "o.ckpt", folder=tmp_path)
    assert "--only tokenizer" in message and "--only transformer" in message


def test_a_foreign_tokenizer_of_many_scales_asks_for_them(tmp_path, caplog, save_pth):
    hits = torch.zeros(11, 48)
    path, _ = save_pth(TOKENIZER, change=with_("quantize.ema_vocab_hit_SV", hits))
    assert "--scales" in refused(caplog, path, tmp_path / "o.ckpt", folder=tmp_path)
    scales = ["--scales", "1,2,3,4,5,6,7,8,9,10,11"]
    assert main([str(path), str(tmp_path / "o.ckpt"), *scales]) == 0


@pytest.mark.parametrize("scales", ["", "1,a", "1,2x3x4", "3,2", "0"])
def test_scales_that_are_none(files, tmp_path, caplog, scales):
    message = refused(
        caplog, files[".pth"], tmp_path / "o.ckpt", "--scales", scales, folder=tmp_path
    )
    assert "scales" in message


def test_a_target_that_exists_is_kept_without_force(files, tmp_path, caplog):
    target = tmp_path / "there.safetensors"
    target.write_text("precious")
    assert "--force" in refused(caplog, files[".pth"], target, folder=tmp_path)
    assert target.read_text() == "precious"
    assert main([str(files[".pth"]), str(target), "--force"]) == 0
    assert inspect(target).config == TRANSFORMER


def test_a_target_of_unknown_suffix(files, tmp_path, caplog):
    assert "'.bin'" in refused(caplog, files[".pth"], tmp_path / "o.bin", folder=tmp_path)


def test_a_folder_as_target(files, tmp_path, caplog):
    (tmp_path / "o.ckpt").mkdir()
    assert "folder" in refused(caplog, files[".pth"], tmp_path / "o.ckpt", folder=tmp_path)


def test_a_folder_that_cannot_be_written_to(files, tmp_path, caplog):
    (tmp_path / "file").touch()
    message = refused(caplog, files[".pth"], tmp_path / "file" / "o.ckpt", folder=tmp_path)
    assert "cannot write" in message


def test_a_full_disk_is_noticed_before_anything_is_written(files, tmp_path, caplog, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5, 5))
    message = refused(caplog, files[".pth"], tmp_path / "o.safetensors", folder=tmp_path)
    assert "free" in message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_up_leaves_no_partial_target(files, tmp_path, caplog, capfd, suffix):
    target = tmp_path / f"o{suffix}"
    target.write_text("precious")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as if the disk ended there
    try:
        message = refused(caplog, files[".safetensors"], target, "--force", folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write" in message
    assert "[CRITICAL]" not in capfd.readouterr().err  # of MindSpore, beside our line
    assert target.read_text() == "precious"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_weights_is_a_warning_with_the_names(save_pth, tmp_path, caplog, value):
    def change(state):
        return {**state, "head.bias": torch.full((48,), value)}

    path, _ = save_pth(TRANSFORMER, change=change)
    assert main([str(path), str(tmp_path / "o.safetensors")]) == 0
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and warnings[0].endswith("in head.bias")
    assert inspect(tmp_path / "o.safetensors").not_finite == ("head.bias",)


def test_a_value_beyond_float16_is_a_warning_with_its_name(save_pth, tmp_path):
    path, _ = save_pth(TRANSFORMER, change=with_("head.bias", torch.full((48,), 1e6)))
    assert convert(path, tmp_path / "full.ckpt").not_finite == ()
    assert convert(path, tmp_path / "half.ckpt", dtype="float16").not_finite == ("head.bias",)


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "var-mindspore"},
        {"format": "var-mindspore", "kind": "painting"},
        {"format": "var-mindspore", "kind": "transformer"},
        {"format": "var-mindspore", "kind": "transformer", "config": "no json"},
        {"format": "var-mindspore", "kind": "transformer", "config": '{"depth": "two"}'},
        {"format": "var-mindspore", "kind": "transformer", "config": '{"deepness": 2}'},
        {"format": "var-mindspore", "kind": "transformer", "config": '{"depth": 3}'},
        {"format": "var-mindspore", "kind": "transformer", "config": '{"depth": 999999999}'},
        {"format": "var-mindspore", "kind": "transformer", "config": '{"scales": [99999]}'},
        {"format": "var-mindspore", "kind": "tokenizer", "config": "{}"},
        {"format": "var-mindspore", "kind": "tokenizer", "config": '{"phi_count": 999999999}'},
    ],
)
def test_metadata_that_does_not_fit(tmp_path, caplog, metadata):
    tensors = {"head.bias": np.zeros(3, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    path = tmp_path / "model.safetensors"
    assert str(path) in refused(caplog, path, tmp_path / "o.ckpt", folder=tmp_path)


# ------------------------------------------------------------------ hostile on purpose
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
    "deep": native("transformer", DEEP),
    "deep in a field": native("transformer", f'{{"scales": {DEEP}'),
    "33 TiB of channels": native("tokenizer", '{"channels": 1000000}'),
    "a vast codebook": native("tokenizer", '{"vocab_size": 1000000000000}'),
    "a vast transformer": native("transformer", '{"depth": 1000000000}'),
    "many scales": native("transformer", json.dumps({"scales": [1] * 10**6})),
    "a vast scale": native("tokenizer", '{"scales": [1, 1000000000]}'),
    "a name that is there twice": native("transformer", '{"depth": 1, "depth": 2}'),
    "not a number": native("transformer", '{"depth": NaN}'),
    "escape sequences": native("transformer", '{"\\u001b[2J\\n": 1}'),
    "escape sequences as the kind": native("\x1b[2J\n", "{}"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("metadata", CLAIMS.values(), ids=CLAIMS)
def test_claims_are_held_against_the_file(tmp_path, caplog, metadata, suffix):
    tensors = {"head.bias": np.zeros(3, np.float32)}
    path = written(tmp_path, suffix, tensors, metadata)
    message = refused(caplog, path, tmp_path / "o.ckpt", folder=tmp_path)
    assert str(path) in message and message.isprintable() and len(message) < 3000


NOTES = {
    "deep names": {"class_names": DEEP},
    "too few names": {"class_names": '["a"]'},
    "numbers for names": {"class_names": "[1, 2, 3, 4, 5]"},
    "no checksum": {"tokenizer": "\x1b[2J"},
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("notes", NOTES.values(), ids=NOTES)
def test_notes_that_are_no_sense_are_refused(files, tmp_path, caplog, notes, suffix):
    with safe_open(files[".safetensors"], framework="numpy") as file:
        metadata = file.metadata() | notes
    path = written(tmp_path, suffix, load_file(files[".safetensors"]), metadata)
    message = refused(caplog, path, tmp_path / "o.ckpt", folder=tmp_path)
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
def test_names_in_files_reach_no_terminal_as_they_are(
    files, tmp_path, caplog, capsys, name, suffix, place
):
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
def test_names_of_files_reach_no_terminal_as_they_are(files, tmp_path, caplog, capsys, name):
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


def test_a_file_name_that_is_not_utf8(files, tmp_path, caplog, capsys):
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    shutil.copy(files[".safetensors"], path)
    assert main(["inspect", str(path)]) == 0
    assert r"caf\xe9.safetensors" in capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(path)


def test_a_pth_with_deeply_nested_keys(tmp_path, caplog):
    key = ()
    for _ in range(900):  # as deep as a pickle can be written
        key = (key,)
    torch.save({key: torch.zeros(1), "x": 1}, tmp_path / "deep.pth")
    message = refused(caplog, tmp_path / "deep.pth", tmp_path / "o.ckpt", folder=tmp_path)
    assert "a tuple" in message


def test_a_pth_that_would_inflate_is_refused_unread(files, tmp_path, caplog):
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
        message = refused(caplog, path, tmp_path / "o.ckpt", folder=tmp_path)
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
def test_a_pth_whose_tensor_claims_more_than_its_storage(tmp_path, caplog, legacy):
    path = tmp_path / "vast.pth"
    torch.save({"head.bias": Claiming()}, path, _use_new_zipfile_serialization=not legacy)
    message = refused(caplog, path, tmp_path / "o.ckpt", folder=tmp_path)
    assert str(path) in message


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_suffix_that_says_nothing_is_read_by_content(files, tmp_path, suffix, name):
    shutil.copy(files[suffix], tmp_path / name)
    assert inspect(tmp_path / name).checksum == inspect(files[suffix]).checksum


def test_a_suffix_and_content_that_say_nothing(tmp_path, caplog):
    (tmp_path / "model.bin").write_bytes(bytes(100))
    message = refused(caplog, tmp_path / "model.bin", tmp_path / "o.ckpt", folder=tmp_path)
    assert "by its content" in message


def test_a_ckpt_of_another_suffix_says_which_it_needs(files, tmp_path, caplog):
    shutil.copy(files[".ckpt"], tmp_path / "model.bin")
    message = refused(caplog, tmp_path / "model.bin", tmp_path / "o.pth", folder=tmp_path)
    assert "expected the suffix .ckpt" in message
