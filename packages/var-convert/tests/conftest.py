"""Small models with random weights, as files of every format."""

import importlib.util
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import peers
import pytest
import tiny

os.environ.setdefault("GLOG_v", "3")

from var_convert import convert
from var_convert.cli import main
from var_tokenizer import TokenizerConfig


def _random_model(config, seed=0):
    """The PyTorch reference of ``config`` with weights that keep signals of order one."""
    torch = pytest.importorskip("torch")
    from var_convert.reference import TorchTokenizer, TorchTransformer

    kind = TorchTokenizer if isinstance(config, TokenizerConfig) else TorchTransformer
    model, noise = kind(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in model.named_parameters():
            drawn = torch.randn(values.shape, generator=noise)
            if name.endswith("scale_mul_1H11"):
                values.copy_(math.log(4) + 0.3 * drawn)
            elif "norm" in name and name.endswith("weight"):
                values.copy_(1 + 0.1 * drawn)
            elif "emb" in name or "pos_" in name:
                values.copy_(drawn if "quantize" in name else 0.3 * drawn)
            elif values.dim() == 1:
                values.copy_(0.02 * drawn)
            else:
                values.copy_(drawn / math.sqrt(values[0].numel()))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def random_model() -> Callable:
    """``random_model(config, seed=0)``, a fixture because tests here cannot import each other."""
    return _random_model


@pytest.fixture(autouse=True)
def one_thread(request):
    """On cores that are busy elsewhere, threads waiting for one another cost a hundred times more
    than models of this size."""
    if request.node.get_closest_marker("slow") or not importlib.util.find_spec("torch"):
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def save_pth(tmp_path) -> Callable:
    """Writes the state dict of a random model of ``config`` as PyTorch would: path, state."""

    def save(config, name="model.pth", change=lambda state: state) -> tuple[Path, dict]:
        torch = pytest.importorskip("torch")
        state = change(dict(_random_model(config).state_dict()))
        torch.save(state, tmp_path / name)
        return tmp_path / name, state

    return save


@pytest.fixture(scope="session")
def files(tmp_path_factory, random_model) -> dict[str, Path]:
    """The tiny transformer in each format, by suffix."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("files")
    found = {suffix: folder / f"model{suffix}" for suffix in (".pth", ".ckpt", ".safetensors")}
    torch.save(dict(random_model(tiny.transformer()).state_dict()), found[".pth"])
    for suffix in (".ckpt", ".safetensors"):
        convert(found[".pth"], found[suffix])
    return found


@pytest.fixture
def refused(caplog, tmp_path) -> Callable:
    """Runs a command that must be refused without a trace in ``tmp_path``; returns its one line."""

    def run(*args) -> str:
        before = sorted(tmp_path.rglob("*"))
        caplog.clear()
        assert main([str(arg) for arg in args]) == 2
        errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
        assert len(errors) == 1 and "\n" not in errors[0]
        assert sorted(tmp_path.rglob("*")) == before
        return errors[0]

    return run


@pytest.fixture(scope="session")
def peer() -> ModuleType:
    return peers.load()
