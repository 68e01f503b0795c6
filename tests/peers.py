"""The independent PyTorch implementation outside the repository, for tests that compare with it."""

import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from var_tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from var_transformer import TransformerConfig


@functools.cache
def load() -> ModuleType:
    """Skips the test where there is none."""
    pytest.importorskip("torch", reason="the peer needs PyTorch")
    beside = Path(__file__).resolve().parents[2] / "shared" / "peer" / "torch_var.py"
    path = Path(os.environ.get("VAR_PEER", beside))
    if not path.is_file():
        pytest.skip(f"no peer implementation at {path}; VAR_PEER can name one")
    spec = importlib.util.spec_from_file_location("torch_var", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["torch_var"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def vae_spec(config: TokenizerConfig) -> Any:
    return load().VaeSpec(
        vocab=config.vocab_size,
        z=config.latent_channels,
        ch=config.channels,
        ch_mult=config.channel_multipliers,
        res_blocks=config.res_blocks,
        phis=config.phi_count,
        scales=config.scales,
    )


def var_spec(config: "TransformerConfig") -> Any:
    return load().VarSpec(
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        classes=config.num_classes,
        vocab=config.vocab_size,
        z=config.latent_channels,
        scales=config.scales,
        shared_adaln=config.shared_adaln,
        qk_l2=config.qk_l2_norm,
    )
