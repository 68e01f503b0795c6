"""A transformer's large weights as int8, and back."""

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from var_convert import convert, inspect
from var_transformer import Transformer, large_weights


@pytest.fixture(scope="module")
def int8_file(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "int8.safetensors"
    convert(files[".pth"], path, dtype="int8")
    return path


def test_large_weights_are_rounded_to_127_steps_each_way_and_the_rest_stays(files, int8_file):
    before, after = load_file(files[".safetensors"]), load_file(int8_file)
    large = large_weights(tiny.transformer())
    assert after.keys() == before.keys() | {f"{name}.scales" for name in large}
    for name, weight in before.items():
        if name not in large:
            np.testing.assert_array_equal(after[name], weight)
            continue
        elements, scales_o = after[name], after[f"{name}.scales"].astype(np.float64)
        assert elements.dtype == np.int8 and np.abs(elements.astype(int)).max(1).tolist() == [
            127
        ] * len(weight)
        error = np.abs(elements * scales_o[:, None] - weight)
        assert (error <= 0.5 * (1 + 1e-5) * scales_o[:, None]).all()


def test_every_reader_sees_the_numbers_that_int8_stands_for(int8_file, tmp_path):
    model, stored = Transformer.load(int8_file), load_file(int8_file)
    for name, array in model.published_tensors().items():
        scales = stored.get(f"{name}.scales", np.ones(1, np.float32))
        np.testing.assert_array_equal(
            array, stored[name] * scales.reshape(-1, 1) if array.ndim == 2 else array
        )
    convert(int8_file, tmp_path / "wide.safetensors")
    wide = load_file(tmp_path / "wide.safetensors")
    assert inspect(int8_file).checksum == inspect(tmp_path / "wide.safetensors").checksum
    assert all(array.dtype == np.float32 for array in wide.values())


def test_inspect_says_that_a_file_is_int8(int8_file):
    found, large = inspect(int8_file), large_weights(tiny.transformer())
    assert found.dtype == "float32+int8"
    assert {tensor.name for tensor in found.tensors if tensor.dtype == "int8"} == large


def test_the_logits_of_int8_are_near_those_of_float32(files, int8_file):
    rng, config = np.random.default_rng(0), tiny.transformer()
    rest = config.schedule.length - config.schedule.tokens[0]
    inputs = rng.standard_normal((2, rest, config.latent_channels)).astype(np.float32)
    logits = [
        Transformer.load(file).logits([0, 5], inputs).asnumpy()
        for file in (files[".safetensors"], int8_file)
    ]
    assert np.abs(logits[1] - logits[0]).max() < 0.05 * logits[0].std()


def test_int8_is_refused_where_it_cannot_be(files, save_pth, tmp_path, refused):
    target = tmp_path / "int8.safetensors"
    tokenizer, _ = save_pth(tiny.tokenizer(), "tokenizer.pth")
    assert "dtype is int8 for a tokenizer" in refused(tokenizer, target, "--dtype", "int8")
    other = refused(files[".pth"], tmp_path / "int8.pth", "--dtype", "int8")
    assert "expected it for a transformer in a .safetensors" in other

    def spoil(state):
        state["head.weight"][0, 0] = np.nan
        return state

    spoiled, _ = save_pth(tiny.transformer(), change=spoil)
    assert "NaN or infinite values in head.weight" in refused(spoiled, target, "--dtype", "int8")
