"""What the token cache saves: an epoch of the transformer's training from it and from images.

``python benchmarks/token_cache.py --tokenizer T --data DIR`` encodes the image tree once, as
``python -m var_train.tokenize`` does, and then trains the same small transformer over the same
images three times: from the files, which are decoded and encoded batch by batch (what a run does
whose images do not fit into memory); from images in memory, which are encoded when the run begins;
and from the cache. Steps are timed in their parts; each training's first step, which compiles, is
left out.
"""

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from var_tokenizer import Tokenizer
from var_train import (
    ImageFolder,
    TokenCache,
    TokenSource,
    TransformerStageConfig,
    TransformerTraining,
    load_image_tree,
    tokens_of,
    write_cache,
)
from var_transformer import Transformer, TransformerConfig

PARTS = {  # of a row, and the timed parts of a step that it has
    "data": ("data", "tokens"),
    "model": ("forward_backward",),
    "optimizer": ("optimizer",),
}


@dataclass(frozen=True)
class Config:
    """Time an epoch of the transformer's training from images and from the token cache."""

    tokenizer: Path
    """A trained tokenizer, .safetensors."""
    data: Path
    """An image tree, DATA/train/CLASS/*.jpg|png and DATA/val/CLASS/*."""
    steps: int | None = None
    """Steps to time; by default a whole epoch."""
    depth: int = 4
    """Blocks of the transformer."""
    width: int = 128
    """Its channels; a head has 32 of them."""
    batch: int = 32
    """Images a step."""


def measure(config: Config, tokenizer: Tokenizer, train: TokenSource, classes: int) -> dict:
    """Mean seconds of a step, whole and in its parts."""
    architecture = TransformerConfig(
        depth=config.depth,
        width=config.width,
        heads=config.width // 32,
        num_classes=classes,
        vocab_size=tokenizer.vocab_size,
        latent_channels=tokenizer.latent_channels,
        scales=tokenizer.schedule.scales,
    )
    stage = TransformerStageConfig(epochs=1, batch=config.batch, samples_per_class=0)
    training = TransformerTraining(
        Transformer(architecture, 0), tokenizer, train, train, stage, seed=0
    )
    steps = training.steps if config.steps is None else min(config.steps, training.steps)
    training.train_step(0)
    sums = dict.fromkeys(PARTS, 0.0)
    begin = time.perf_counter()
    for step in range(1, steps):
        values = training.train_step(step)
        for part, names in PARTS.items():
            for name in names:
                seconds = values[f"seconds_{name}"]
                assert isinstance(seconds, float)
                sums[part] += seconds
    whole = time.perf_counter() - begin
    return {part: seconds / (steps - 1) for part, seconds in (*sums.items(), ("step", whole))}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = tyro.cli(Config)
    tokenizer = Tokenizer.load(config.tokenizer)
    size = tokenizer.config.image_size
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        files, held_out = load_image_tree(config.data, size, memory_limit=0)
        assert isinstance(files, ImageFolder) and isinstance(held_out, ImageFolder)
        splits = {"train": files, "val": held_out}
        write_cache(tokenizer, splits, Path(folder), shard=4096, batch=32)
        written = time.perf_counter() - begin
        logging.info("cache written in %.0f s, once, with mirrored images", written)
        begin = time.perf_counter()
        memory, _ = load_image_tree(config.data, size)
        encoded = tokens_of(tokenizer, memory, config.batch)
        start_of_memory = time.perf_counter() - begin
        begin = time.perf_counter()
        cache = TokenCache(Path(folder), "train", tokenizer)
        start_of_cache = time.perf_counter() - begin
        rows = (
            ("files, batch by batch", 0.0, tokens_of(tokenizer, files, config.batch)),
            ("memory, encoded at the start", start_of_memory, encoded),
            ("token cache", start_of_cache, cache),
        )
        logging.info("%-30s start  an epoch  a step  data  model  optimizer", "")
        for name, start, source in rows:
            found = measure(config, tokenizer, source, len(files.classes))
            epoch = start + found["step"] * len(source) / config.batch
            shares = (f"{found[part] / found['step']:6.1%}" for part in PARTS)
            logging.info(
                "%-30s %4.0f s  %5.0f s  %4.0f ms  %s",
                *(name, start, epoch, found["step"] * 1000, " ".join(shares)),
            )


if __name__ == "__main__":
    main()
