import json
import os
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mindspore import ops
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from var_tokenizer import (
    InputError,
    Tokenizer,
    TokenizerConfig,
    quoted,
    read_checkpoint,
    replacing,
)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tokenizer.safetensors"
    tiny.save(path)
    return path


def metadata(path: Path, **changes) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() | changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.conv_in.bias"), "1 missing tensor.*encoder.conv_in.bias"),
        (lambda t: t.update(stray=np.zeros(1, np.float32)), "1 unexpected tensor.*stray"),
        (
            lambda t: t.update({"encoder.conv_in.bias": np.zeros(3, np.float32)}),
            r"wrong shape: encoder.conv_in.bias \(3,\), expected \(32,\)",
        ),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(saved, tmp_path, change, message):
    tensors = load_file(saved)
    change(tensors)
    save_file(tensors, tmp_path / "bad.safetensors", metadata(saved))
    with pytest.raises(InputError, match=message):
        Tokenizer.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "transformer"}, "holds a transformer; expected a tokenizer"),
        ({"format": "other"}, "no var-mindspore configuration"),
        ({"config": '{"vocab_size": 0}'}, "vocab_size is 0"),
        ({"config": '{"colour": 1}'}, "colour"),
        ({"config": "[]"}, "unusable tokenizer configuration"),
        ({"config": "{"}, "unusable tokenizer configuration"),
    ],
)
def test_a_file_of_another_kind_or_configuration_is_an_error(saved, tmp_path, changes, message):
    save_file(load_file(saved), tmp_path / "bad.safetensors", metadata(saved, **changes))
    with pytest.raises(InputError, match=message):
        Tokenizer.load(tmp_path / "bad.safetensors")


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.safetensors: no such file"):
        Tokenizer.load(tmp_path / "nothing.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.floats(0, 0.999))
def test_a_truncated_file_is_an_error_wherever_it_is_cut(saved, tmp_path, cut):
    data = saved.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        read_checkpoint(path, "tokenizer", TokenizerConfig)


def test_bfloat16_tensors_are_read_exactly(saved, tmp_path):
    header = {
        "__metadata__": metadata(saved),
        "x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    values = np.array([1.5, -3.0], np.float32).view(np.uint32) >> 16
    path = tmp_path / "half.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + values.astype(np.uint16).tobytes())
    _, tensors = read_checkpoint(path, "tokenizer", TokenizerConfig)
    np.testing.assert_array_equal(tensors["x"], [1.5, -3.0])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            assert temporary.stat().st_mode & 0o777 == 0o666 & ~umask
            temporary.write_text("new")
            temporary.chmod(0o400)  # as MindSpore's save_checkpoint does
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_no_thread_sees_another_umask_while_a_file_is_written(tmp_path, monkeypatch):
    def unexpected(_mask):
        raise AssertionError("the umask of all threads was set")

    monkeypatch.setattr(os, "umask", unexpected)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_folder_in_the_place_of_a_file_is_an_error_that_names_it(tiny, tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"model\.safetensors: is a folder"):
        tiny.save(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]


def test_a_folder_that_is_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write here"), replacing(tmp_path / "file" / "x"):
        pass


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("encoder.conv_in.weight", "encoder.conv_in.weight"),
        ("Häuser/猫 [red].png", "Häuser/猫 [red].png"),
        ("\x1b[2J\a\b", r"\x1b[2J\x07\x08"),
        ("a\nERROR: b\r", r"a\nERROR: b\r"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202egnp.exe\u2066\u200f", r"\u202egnp.exe\u2066\u200f"),
        ("line\u2028separator", r"line\u2028separator"),
        (b"caf\xe9.png", r"caf\xe9.png"),
        (Path("b\ud800"), r"b\ud800"),
        ("x" * 2000, "x" * 1000 + "..."),
    ],
)
def test_names_of_files_are_shown_in_one_line_without_control_characters(name, shown):
    assert quoted(name) == shown


def test_the_checksum_is_that_of_the_weights_whatever_wrapped_them(tiny, saved, tmp_path):
    tensors = load_file(saved)
    stripped = {n: tensors[n] for n in reversed(tensors)}
    save_file(stripped, tmp_path / "other.safetensors", metadata(saved, note="of another writer"))
    assert Tokenizer.load(tmp_path / "other.safetensors").checksum() == tiny.checksum()


def test_the_checksum_sees_every_way_to_change_a_weight(saved):
    tokenizer = Tokenizer.load(saved)
    seen = [tokenizer.checksum()]
    bias = tokenizer.decoder.conv_out.bias
    bias.set_data(bias + 1)
    seen.append(tokenizer.checksum())
    ops.assign(bias, bias + 1)
    seen.append(tokenizer.checksum())
    ms.load_param_into_net(tokenizer, {bias.name: ms.Parameter(bias + 1, name=bias.name)})
    seen.append(tokenizer.checksum())
    assert len(set(seen)) == 4


def test_ctrl_c_right_after_the_temporary_file_appeared_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*arguments: object) -> int:
        os.close(opened(*arguments))
        raise KeyboardInterrupt

    opened = os.open
    monkeypatch.setattr("var_tokenizer.checkpoint.os.open", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file.png"):
        pytest.fail("the block ran")
    assert not list(tmp_path.iterdir())
