import dataclasses
import json
import logging
import os
import pickle
import shlex
import zipfile
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mindspore import ops
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from var_tokenizer import Tokenizer, TokenizerConfig, tokenizer_shapes
from var_tokenizer.common import (
    InputError,
    Snapshot,
    open_checkpoint,
    read_header,
    read_tensors,
    write_snapshot,
    write_tensors,
)

TINY = tiny.tokenizer(scales=(1, 2, 4))  # of the fixture ``tokenizer``


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tokenizer.safetensors"
    tokenizer.save(path)
    return path


def metadata(path: Path, **changes) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() | changes


def refusal(path: Path, message: str | None = None) -> str:
    """What is said of a file that is no tokenizer, in one safe line."""
    with pytest.raises(InputError, match=message) as error:
        Tokenizer.load(path)
    assert str(error.value).isprintable()
    return str(error.value)


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
    refusal(tmp_path / "bad.safetensors", message)


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
    refusal(tmp_path / "bad.safetensors", message)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    refusal(tmp_path / "nothing.safetensors", r"nothing\.safetensors: no such file")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.floats(0, 0.999))
def test_a_truncated_file_is_an_error_wherever_it_is_cut(saved, tmp_path, cut):
    data = saved.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        open_checkpoint(path, "tokenizer", TokenizerConfig).read()


def test_bfloat16_tensors_are_read_exactly(saved, tmp_path):
    header = {
        "__metadata__": metadata(saved),
        "x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    values = np.array([1.5, -3.0], np.float32).view(np.uint32) >> 16
    path = tmp_path / "half.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + values.astype(np.uint16).tobytes())
    tensors = open_checkpoint(path, "tokenizer", TokenizerConfig).read()
    np.testing.assert_array_equal(tensors["x"], [1.5, -3.0])


def test_the_checksum_depends_on_the_weights_alone(tokenizer, saved, tmp_path):
    tensors = load_file(saved)
    stripped = {n: tensors[n] for n in reversed(tensors)}
    save_file(stripped, tmp_path / "other.safetensors", metadata(saved, note="of another writer"))
    assert Tokenizer.load(tmp_path / "other.safetensors").checksum() == tokenizer.checksum()


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


def claiming(**fields) -> str:
    """The configuration of the tiny tokenizer with other fields."""
    return json.dumps(dataclasses.asdict(TINY) | fields)


DEEP = "[" * 100_000
CLAIMS = {
    "33 TiB of channels": (claiming(channels=1_000_000), "encoder.conv_in.weight"),
    "channels without end": (claiming(channels=32 * 10**30), "encoder.conv_in.weight"),
    "a vast vocabulary": (claiming(vocab_size=10**12), "quantize.embedding.weight"),
    "vast codes": (claiming(latent_channels=10**12), "encoder.conv_out.weight"),
    "many blocks": (claiming(res_blocks=10**9), "missing"),
    "many refinements": (claiming(phi_count=10**9), "missing"),
    "many levels": (claiming(channel_multipliers=[1] * 10**6), "missing"),
    "many scales": (claiming(scales=[1] * 10**6), "scales holds 1000000 sizes"),
    "a vast scale": (claiming(scales=[1, 10**6]), "tokens"),
    "a vast row": (claiming(scales=[1, [1, 10**12]]), "tokens"),
    "deep": (DEEP, "recursion"),
    "deep in a field": (f'{{"scales": {DEEP}', "recursion"),
    "a deep whole": (f'{{"scales": {DEEP}{"]" * 100_000}}}', "recursion"),
    "a name that is there twice": ('{"channels": 32, "channels": 64}', "twice"),
    "a true count": (claiming(res_blocks=True), "res_blocks is True"),
    "a true multiplier": (claiming(channel_multipliers=[True, True]), "channel_multipliers is"),
    "no multipliers": (claiming(channel_multipliers=5), "channel_multipliers is 5"),
    "a fraction": (claiming(phi_count=4.0), "phi_count is 4.0"),
    "not a number": ('{"channels": NaN}', "channels is nan"),
    "infinite": ('{"vocab_size": Infinity}', "vocab_size is inf"),
    "beyond all numbers": ('{"vocab_size": 1e999}', "vocab_size is inf"),
    "thousands of digits": (f'{{"vocab_size": {"9" * 5000}}}', "digits"),
    "a negative count": (claiming(vocab_size=-1), "vocab_size is -1"),
    "nothing": (claiming(vocab_size=None), "vocab_size is None"),
    "text": (claiming(channels="32"), "channels is '32'"),
    "yes": (claiming(using_znorm="yes"), "using_znorm is 'yes'"),
    "escape sequences": ('{"\\u001b[2J\\u0007\\n": 1}', "x1b"),
}


@pytest.mark.parametrize(("config", "message"), CLAIMS.values(), ids=CLAIMS)
def test_claims_of_a_file_are_checked_before_anything_is_built(
    saved, tmp_path, monkeypatch, config, message
):
    def unexpected(*_args, **_more):
        raise AssertionError("a tokenizer was built")

    monkeypatch.setattr(Tokenizer, "__init__", unexpected)
    save_file(load_file(saved), tmp_path / "bad.safetensors", metadata(saved, config=config))
    shown = refusal(tmp_path / "bad.safetensors", message)
    assert "bad.safetensors: " in shown and len(shown) < 3000


def raw(path: Path, header: object, data: bytes = bytes(8), length: int | None = None) -> Path:
    """A safetensors file written by hand. header: JSON text, or what becomes it."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def tensor(begin: object, end: object, shape: object = (1,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "a length beyond the file": ({}, {"length": 10**6}),
    "a length of exabytes": ({}, {"length": 2**63}),
    "a length of nothing": ({"a": tensor(0, 8, [2])}, {"length": 0}),
    "half of the header": ({"a": tensor(0, 8, [2])}, {"length": 9}),
    "tensors over one another": ({"a": tensor(0, 8, [2]), "b": tensor(4, 8)}, {}),
    "a hole": ({"a": tensor(4, 8)}, {}),
    "beyond the end": ({"a": tensor(0, 4 * 10**9, [10**9])}, {}),
    "bytes to spare": ({"a": tensor(0, 4)}, {}),
    "backwards": ({"a": tensor(8, 0, [2])}, {}),
    "a shape of other bytes": ({"a": tensor(0, 8, [10**9])}, {}),
    "a shape that overflows": ({"a": tensor(0, 8, [2**62, 2**62])}, {}),
    "a negative shape": ({"a": tensor(0, 8, [-2])}, {}),
    "a fraction": ({"a": tensor(0, 8, [2.0])}, {}),
    "true": ({"a": tensor(0, 8, [True, 2])}, {}),
    "not a number": ('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', {}),
    "an unknown type": ({"a": tensor(0, 8, [2], "\x1b[2J")}, {}),
    "no type": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, {}),
    "numbers for tensors": ({"a": 3}, {}),
    "a list": ([1, 2], {}),
    "deep": ('{"a": ' + DEEP, {}),
    "metadata that is no text": ({"__metadata__": {"config": {"depth": 1}}}, {"data": b""}),
    "metadata that is a list": ({"__metadata__": [1]}, {"data": b""}),
    "a name that is there twice": (
        f'{{"a": {json.dumps(tensor(0, 4))}, "a": {json.dumps(tensor(4, 8))}}}',
        {},
    ),
    "a note that is there twice": ('{"__metadata__": {"kind": "a", "kind": "b"}}', {"data": b""}),
}


@pytest.mark.parametrize(("header", "more"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(tmp_path, header, more):
    path = raw(tmp_path / "bad.safetensors", header, **more)
    with pytest.raises(InputError, match="not a readable") as error:
        read_header(path)
    assert f"{path}: " in str(error.value) and str(error.value).isprintable()
    refusal(path, r"bad\.safetensors: ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_random_damage_to_the_header_is_an_input_error_or_harmless(saved, tmp_path, data):
    damaged = bytearray(saved.read_bytes())
    end = 8 + int.from_bytes(damaged[:8], "little")
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damaged)
    try:
        checkpoint = open_checkpoint(path, "tokenizer", TokenizerConfig)
        checkpoint.check(tokenizer_shapes(checkpoint.config))
    except InputError as error:
        assert str(path) in str(error) and str(error).isprintable()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
def test_weights_that_are_not_floats_are_refused(saved, tmp_path, dtype):
    tensors = load_file(saved)
    tensors["quant_conv.bias"] = tensors["quant_conv.bias"].astype(dtype)
    save_file(tensors, tmp_path / "bad.safetensors", metadata(saved))
    refusal(tmp_path / "bad.safetensors", r"quant_conv\.bias has dtype .*; expected floating")


@pytest.mark.parametrize("name", ["\x1b]0;owned\a", "a\nERROR: faked", "\u202egnp", "\x9b2J"])
def test_names_in_a_file_are_escaped_before_they_reach_a_terminal(saved, tmp_path, name):
    tensors, path = load_file(saved), tmp_path / "bad.safetensors"
    save_file(tensors | {name: np.zeros(1, np.float32)}, path, metadata(saved))
    refusal(path, "1 unexpected tensor")
    save_file(tensors, path, metadata(saved, kind=name))
    refusal(path, "expected a tokenizer")
    (tmp_path / f"{name}.safetensors").write_bytes(b"damaged")
    refusal(tmp_path / f"{name}.safetensors")


CONFIGS = [
    TINY,
    TokenizerConfig(
        vocab_size=16,
        latent_channels=4,
        channels=32,
        channel_multipliers=(1, 2, 2),
        res_blocks=2,
        phi_count=3,
        scales=(1, (1, 2), (2, 3)),
    ),
    TokenizerConfig(channels=32, channel_multipliers=(2,), phi_count=1, scales=(2,)),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_shapes_without_a_tokenizer_are_those_of_the_built_one(config):
    built = Tokenizer(config, seed=None).published_tensors()
    assert dict(tokenizer_shapes(config)) == {n: a.shape for n, a in built.items()}


def torch_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}q\x00.")
    return path


def old_torch(path: Path) -> Path:
    """As PyTorch wrote before 1.6: pickles one after another, the first a magic number."""
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00.")
    return path


def plain_pickle(path: Path) -> Path:
    path.write_bytes(pickle.dumps({"encoder.conv_in.weight": [1.0]}))
    return path


def mindspore_file(path: Path) -> Path:
    tensor = {"name": "encoder.conv_in.weight", "data": ms.Tensor(np.zeros((3, 3), np.float32))}
    ms.save_checkpoint([tensor], str(path.with_suffix(".ckpt")))
    return path.with_suffix(".ckpt").rename(path)


def other_safetensors(path: Path) -> Path:
    save_file({"encoder.conv_in.weight": np.zeros(3, np.float32)}, path, {"format": "pt"})
    return path


FOREIGN = [torch_zip, old_torch, plain_pickle, mindspore_file, other_safetensors]


@pytest.mark.parametrize("name", ["vae.pth", "vae.ckpt", "vae.pt", "vae.safetensors", "vae 1"])
@pytest.mark.parametrize("write", FOREIGN)
def test_a_file_of_another_format_is_refused_with_the_command_that_converts_it(
    tmp_path, write, name
):
    path = write(tmp_path / name)
    command = refusal(path, r"vae.*expected a native tokenizer").rpartition(": ")[2]
    source, target, *rest = shlex.split(command)[1:]
    assert command.startswith("var-convert ") and rest == ["--only", "tokenizer"]
    assert source == str(path) and not Path(target).exists() and target.endswith(".safetensors")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_file_whose_first_bytes_are_those_of_a_pickle_is_read(saved, tmp_path, protocol):
    content = saved.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    length = bytes((0x80, protocol, 1)).ljust(8, b"\0")
    header = content[8:end].ljust(int.from_bytes(length, "little"))
    (tmp_path / "t.safetensors").write_bytes(length + header + content[end:])
    assert Tokenizer.load(tmp_path / "t.safetensors").config == TINY


def training(tokenizer: Tokenizer, averaged: bool) -> Snapshot:
    """As var-train saves it; the averages are the weights plus 1."""
    weights = {f"tokenizer/{p.name}": p.asnumpy() for p in tokenizer.get_parameters()}
    averages = {f"ema/ema.{p.name}": p.asnumpy() + 1 for p in tokenizer.trainable_params()}
    arrays = {**weights, **(averages if averaged else {}), "codebook/usage": np.zeros(3)}
    return Snapshot(7, arrays, {"settings": {}}, tokenizer.metadata())


@pytest.mark.parametrize("averaged", [False, True])
def test_a_training_checkpoint_loads_as_its_model_averaged_where_it_is(
    tokenizer, tmp_path, caplog, averaged
):
    caplog.set_level(logging.INFO)
    path = tmp_path / "step-000000007.safetensors"
    write_snapshot(path, training(tokenizer, averaged))
    found = Tokenizer.load(path)
    assert found.config == tokenizer.config
    trained = {p.name for p in tokenizer.trainable_params()} if averaged else set()
    assert len(trained) < len(tokenizer.published_tensors())  # statistics have no average
    for name, array in found.published_tensors().items():
        expected = tokenizer.published_tensors()[name] + (name in trained)
        np.testing.assert_array_equal(array, expected.astype(np.float32))
    which = "its averaged weights" if averaged else "its weights; it keeps no averages"
    assert f"{path}: a training after step 7: {which}" in caplog.text


@pytest.mark.parametrize("place", [-1, 0.5])
def test_a_training_checkpoint_with_one_wrong_bit_is_refused_as_a_model(tokenizer, tmp_path, place):
    """Wherever it is: the checksum covers moments and the like, too."""
    path = tmp_path / "step-000000007.safetensors"
    write_snapshot(path, training(tokenizer, averaged=True))
    content = bytearray(path.read_bytes())
    content[place if place < 0 else int(place * len(content))] ^= 1
    path.write_bytes(content)
    refusal(path, "damaged .*the checksum differs")


def test_a_checkpoint_that_lacks_weights_or_claims_others_is_refused(tokenizer, tmp_path):
    path, whole = tmp_path / "step.safetensors", training(tokenizer, averaged=True)
    for change, message in (
        (lambda a: a.pop("tokenizer/quantize.ema_vocab_hit_SV"), "1 missing tensor"),
        (lambda a: a.update({"ema/ema.\x1b[2J": np.zeros(1)}), r"1 unexpected.*: \\x1b\[2J"),
        (
            lambda a: a.update({"ema/ema.encoder.conv_in.weight": np.zeros((32, 3, 3, 4))}),
            r"conv_in.weight \(32, 4, 3, 3\), expected \(32, 3, 3, 3\)",
        ),
    ):
        changed = dataclasses.replace(whole, arrays=dict(whole.arrays))
        change(changed.arrays)
        write_snapshot(path, changed)
        refusal(path, message)
    for model, message in (
        ({"kind": "transformer"}, "holds a transformer; expected a tokenizer"),
        ({"config": '{"vocab_size": -1}'}, "unusable tokenizer configuration: vocab_size is -1"),
    ):
        write_snapshot(path, dataclasses.replace(whole, model={**whole.model, **model}))
        refusal(path, message)


def test_a_training_checkpoint_that_does_not_describe_its_model_is_refused(tmp_path):
    path = tmp_path / "step-000000007.safetensors"
    notes = {"step": "7", "state": "{}", "sha256": "0", "best": "true"}
    save_file({"model/a": np.zeros(3, np.float32)}, path, notes)
    refusal(path, "a checkpoint of a training that does not describe its model")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\n\xff", b"\x80", b"PK\x03\x04", b"GIF89a", b"{}"]
)
def test_a_file_of_no_known_format_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    refusal(tmp_path / "x.pth", r"x\.pth: not a readable \.safetensors file")


def test_nothing_in_a_pickle_runs(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for write in (torch_zip, old_torch):
        path = write(tmp_path / "x.pth")
        path.write_bytes(path.read_bytes() + pickle.dumps(Hostile()))
    (tmp_path / "y.pth").write_bytes(pickle.dumps(Hostile()))
    for path in tmp_path.glob("*.pth"):
        refusal(path, "PyTorch")
    assert not (tmp_path / "ran").exists()


WORDS = st.text(st.characters(exclude_categories=["Cs"]))  # a surrogate alone is no text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(metadata=st.dictionaries(WORDS, WORDS, min_size=1))
def test_equal_content_gives_equal_bytes_and_comes_back(tmp_path, metadata):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        write_tensors(path, {"b": np.arange(6.0), "a": np.ones((2, 3), np.float32).T}, metadata)
    assert len({path.read_bytes() for path in paths}) == 1
    found, tensors = read_header(paths[0])
    assert found == metadata
    np.testing.assert_array_equal(read_tensors(paths[0], tensors)["b"], np.arange(6.0))
    np.testing.assert_array_equal(load_file(paths[0])["a"], np.ones((3, 2)))
