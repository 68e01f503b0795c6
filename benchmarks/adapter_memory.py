"""Peak memory of a training step of VAR-d16 by LoRA, beside that of all weights.

    python benchmarks/adapter_memory.py

Random weights and tokens at 256 px, one image a step; two steps of each, in processes of their own.
"""

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import logging
import resource
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import tyro

log = logging.getLogger("adapter_memory")


@dataclass(frozen=True)
class Config:
    """Measure what a step holds at its peak, in GiB."""

    depth: int = 16
    """Blocks of the transformer, which is 64 times as wide."""
    rank: int = 8
    """Rank of the adapter."""
    recompute: bool = False
    """Compute each block again in the backward pass."""
    alone: bool = False
    """Take the steps in this process, with RANK (0 for all weights), and print its peak."""


def take_steps(config: Config) -> float:
    """GiB at the peak of this process after two steps."""
    from var_tokenizer import Tokenizer, TokenizerConfig
    from var_train import AdapterTraining, TokenSet, TransformerStageConfig, TransformerTraining
    from var_transformer import LoraConfig, Transformer, TransformerConfig

    size = TransformerConfig(depth=config.depth, num_classes=4)
    # narrow: its memory is not what is measured
    tokenizer = Tokenizer(TokenizerConfig(channels=32, channel_multipliers=(1, 1, 1, 1, 1)), 0)
    model, rng = Transformer(size, 0), np.random.default_rng(0)
    ids_nl = rng.integers(0, size.vocab_size, (2, size.schedule.length)).astype(np.int32)
    tokens = TokenSet(ids_nl, np.arange(2, dtype=np.int32))
    lora = LoraConfig(rank=config.rank)
    stage = TransformerStageConfig(epochs=1, batch=1, lora=lora, recompute=config.recompute)
    trained = model, tokenizer, tokens, tokens, stage, 0
    if config.rank:
        training: TransformerTraining = AdapterTraining(*trained, ("zebra", "horse"))
    else:
        training = TransformerTraining(*trained)
    for step in range(2):
        training.train_step(step)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = tyro.cli(Config)
    if config.alone:
        sys.stdout.write(f"{take_steps(config):.3f}\n")
        return
    peaks = {}
    for rank in (0, config.rank):
        words = [sys.executable, __file__, "--alone", "--depth", str(config.depth)]
        words += ["--rank", str(rank), *(["--recompute"] * config.recompute)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks[rank] = float(done.stdout.split()[-1])
        log.info("%s: %.2f GiB", f"rank {rank}" if rank else "all weights", peaks[rank])
    log.info("%.2f of the memory", peaks[config.rank] / peaks[0])


if __name__ == "__main__":
    main()
