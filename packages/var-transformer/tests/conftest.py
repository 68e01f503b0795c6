"""The tiny transformer with the tokenizer whose tokens it reads."""

import ctypes

import numpy as np
import pytest
import tiny
from ascend_models import SOURCES, compiled
from var_tokenizer import Tokenizer
from var_transformer import BackendConfig, Transformer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny.tokenizer())


@pytest.fixture(scope="session")
def model() -> Transformer:
    return randomized(Transformer(tiny.transformer()))


def randomized(model: Transformer) -> Transformer:
    """The published initialization closes every gate; random weights let each part matter."""
    from mindspore import Tensor

    rng = np.random.default_rng(7)
    for parameter in model.trainable_params():
        noise = 0.2 * rng.standard_normal(parameter.shape).astype(np.float32)
        parameter.set_data(Tensor(parameter.asnumpy() + noise))
    return model


@pytest.fixture(scope="session")
def make_config():
    return tiny.transformer


@pytest.fixture(scope="session")
def make_model():
    def make(backend: BackendConfig | None = None, **changes) -> Transformer:
        config = tiny.transformer(**changes)
        return randomized(Transformer(config, backend=backend or BackendConfig()))

    return make


@pytest.fixture(scope="module", params=["auto", pytest.param("portable", marks=pytest.mark.slow)])
def backend(request) -> BackendConfig:
    return BackendConfig(request.param)


@pytest.fixture(scope="session")
def smaller(make_model) -> Transformer:
    return make_model(depth=1, width=16)


@pytest.fixture
def no_model_runs(monkeypatch):
    """Fails a test in which a transformer or the tokenizer's decoder runs."""

    def unexpected(*_args):
        raise AssertionError("a model ran")

    for name in ("condition", "extend", "extend_some", "logits"):
        monkeypatch.setattr(Transformer, name, unexpected)
    for name in ("add_scale", "decode", "decode_latent"):
        monkeypatch.setattr(Tokenizer, name, unexpected)


@pytest.fixture(scope="session")
def pair(model, tokenizer, smaller, tmp_path_factory):
    """A folder with the files of both models, a smaller transformer, and one with class names."""
    folder = tmp_path_factory.mktemp("pair")
    model.save(folder / "m.safetensors")
    tokenizer.save(folder / "t.safetensors")
    smaller.save(folder / "small.safetensors")
    named = Transformer.load(folder / "m.safetensors")
    named.class_names = ("cat", "dog", "0", "fox", "10")
    named.save(folder / "named.safetensors")
    (folder / "names.txt").write_text("cat\ndog, hound\neel\nfox\ngnu\n")
    return folder


@pytest.fixture(scope="session")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    """The kernels in Ascend C, on the model of the instructions."""
    return compiled(tmp_path_factory.mktemp("ascend_c") / "kernels.so", SOURCES)
