"""Checkpoints of a training as files of a model."""

import json
import logging

import numpy as np
import pytest
import tiny
from var_convert import convert, inspect
from var_convert.cli import main
from var_tokenizer import Tokenizer
from var_tokenizer.common import Snapshot, write_snapshot
from var_transformer import Transformer

MODELS = {"tokenizer": lambda: Tokenizer(tiny.tokenizer(), 0)} | {
    "transformer": lambda: Transformer(tiny.transformer(), 0)
}


@pytest.fixture(scope="module")
def models():
    return {kind: build() for kind, build in MODELS.items()}


@pytest.fixture(params=MODELS)
def checkpoint(models, request, tmp_path):
    """A checkpoint as var-train saves it, and its model; the averages are what the model has."""
    model = models[request.param]
    weights = {f"{request.param}/{p.name}": p.asnumpy() for p in model.get_parameters()}
    arrays = {**weights, "optimizer/first_moment.head.bias": np.zeros(3, np.float32)}
    for p in model.trainable_params():
        arrays[f"ema/ema.{p.name}"] = p.asnumpy()
        arrays[f"{request.param}/{p.name}"] = p.asnumpy() + 1
    path = tmp_path / "step-000000007.safetensors"
    write_snapshot(path, Snapshot(7, arrays, {"settings": {}}, model.metadata()))
    return path, model


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pth"])
def test_a_checkpoint_converts_to_its_averaged_model(checkpoint, tmp_path, caplog, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    caplog.set_level(logging.INFO)
    path, model = checkpoint
    convert(path, tmp_path / f"model{suffix}")
    expected = dict((n, a.copy()) for n, a in model.published_tensors().items())
    found = inspect(tmp_path / f"model{suffix}")
    assert found.config == model.config
    convert(tmp_path / f"model{suffix}", tmp_path / "again.safetensors")
    again = type(model).load(tmp_path / "again.safetensors").published_tensors()
    assert all((array == expected[name]).all() for name, array in again.items())
    assert f"{path}: a training after step 7: its averaged weights" in caplog.text


def test_inspect_shows_the_checksum_of_the_averaged_weights(checkpoint, tmp_path, capsys):
    path, model = checkpoint
    model.save(tmp_path / "model.safetensors")
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["checksum"] == inspect(tmp_path / "model.safetensors").checksum
    assert all("/" not in tensor["name"] for tensor in shown["tensors"])
