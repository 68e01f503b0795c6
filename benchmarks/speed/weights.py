"""Random weights of d16 and its tokenizer, drawn by PyTorch and carried over by var-convert."""

import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("benchmark")


def make(folder: Path) -> None:
    """Writes ``vae.safetensors`` and ``var.safetensors`` into ``folder`` where they are missing."""
    import torch
    from var_convert import convert
    from var_convert.reference import TorchTokenizer, TorchTransformer
    from var_tokenizer import TokenizerConfig
    from var_transformer import TransformerConfig

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    models: dict[str, Callable[[], torch.nn.Module]] = {
        "vae": lambda: TorchTokenizer(TokenizerConfig()),
        "var": lambda: TorchTransformer(TransformerConfig.preset("d16")),
    }
    for name, build in models.items():
        target = folder / f"{name}.safetensors"
        if target.exists():
            continue
        log.info("drawing %s", target)
        source = folder / f"{name}.pth"
        torch.save(build().state_dict(), source)
        convert(source, target)
        source.unlink()
