"""What faster sampling costs in quality, and what it saves, on the digits model.

``python benchmarks/faster_sampling.py --run runs/digits`` takes the models that
``python -m var_train.run --out runs/digits`` trained, trains a smaller transformer on the same
tokens (once: it is kept in the folder), samples with every setting and writes a table.
"""

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import logging
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, check_integer
from var_train import (
    DigitJudge,
    LoopConfig,
    MetricsLog,
    TransformerStageConfig,
    TransformerTraining,
    distinct,
    load_digits_split,
    tokens_of,
    train_stage,
)
from var_transformer import Refiner, Transformer, check_pair, generate

log = logging.getLogger("faster_sampling")


@dataclass(frozen=True)
class Config:
    """Measure quality and time of faster sampling on the digits."""

    run: Path = Path("runs/digits")
    """The folder of a digits run."""
    per_class: int = 50
    """Images of each class for each setting and seed."""
    seeds: int = 5
    """Seeds 0, 1, ..., at least 2: the table gives mean and standard deviation over them."""
    batch: int = 100
    """Images at once."""
    cfg: float = 1.5
    """Strength of guidance at the last scale, where there is guidance."""


@dataclass
class Setting:
    """One row of the table, and what was measured for each seed."""

    name: str
    model: Transformer
    arguments: dict[str, Any]
    accuracy: list[float] = field(default_factory=list)
    distinct: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)  # an image


def settings(scales: int, cfg: float, large: Transformer, small: Transformer) -> list[Setting]:
    """Those of the table, the undiminished model first."""
    rows = [Setting("large model, guided throughout", large, {"cfg": cfg})]
    for skipped in range(1, scales - 1):
        guided = tuple(range(scales - skipped))
        name = f"no guidance in the last {skipped}"
        rows.append(Setting(name, large, {"cfg": cfg, "guided_scales": guided}))
    rows.append(Setting("no guidance", large, {"cfg": 0.0}))
    for refined in range(1, scales):
        name = f"small model for the last {refined}"
        rows.append(Setting(name, large, {"cfg": cfg, "refiner": Refiner(small, refined)}))
    both = {"cfg": cfg, "refiner": Refiner(small, 1), "guided_scales": tuple(range(scales - 1))}
    rows.append(Setting("small model and no guidance in the last 1", large, both))
    rows.append(Setting("small model alone", small, {"cfg": cfg}))
    return rows


def small_model(config: Config, tokenizer: Tokenizer, large: Transformer) -> Transformer:
    """Half as deep and half as wide as ``large``, trained for as long."""
    path = config.run / "small.safetensors"
    if path.exists():
        return Transformer.load(path)
    size = large.config
    small = Transformer(
        replace(size, depth=size.depth // 2, width=size.width // 2, heads=size.heads // 2)
    )
    stage = TransformerStageConfig()
    train, val = (tokens_of(tokenizer, images, stage.batch) for images in load_digits_split())
    training = TransformerTraining(small, tokenizer, train, val, stage, seed=0)
    folder = config.run / "small"
    metrics = MetricsLog(folder)
    train_stage(training, folder, metrics, LoopConfig(validations=1), settings={}, resume=False)
    metrics.close()
    small.save(path)
    return small


def sample(
    row: Setting, tokenizer: Tokenizer, labels_n: np.ndarray, batch: int, seed: int
) -> np.ndarray:
    """Images (N, 3, Y, X) in [0, 1]; N is a multiple of ``batch``."""
    parts = []
    for begin in range(0, len(labels_n), batch):
        numbers = range(begin, begin + batch)
        labels = labels_n[begin : begin + batch]
        found = generate(row.model, tokenizer, labels, seed=seed, numbers=numbers, **row.arguments)
        parts.append(found.images)
    return np.concatenate(parts)


def measure(config: Config) -> list[Setting]:
    labels_n = np.repeat(np.arange(10, dtype=np.int32), config.per_class)
    check_integer("seeds", config.seeds, 2)
    if len(labels_n) % config.batch:
        raise InputError(f"batch is {config.batch}; expected a divisor of {len(labels_n)} images")
    tokenizer = Tokenizer.load(config.run / "tokenizer.safetensors")
    large = Transformer.load(config.run / "transformer.safetensors")
    check_pair(large, tokenizer)
    small = small_model(config, tokenizer, large)
    train, _ = load_digits_split()
    judge = DigitJudge(train)

    rows = settings(len(tokenizer.schedule), config.cfg, large, small)
    for row in rows:  # compiles what the timed rounds run
        sample(row, tokenizer, labels_n[: config.batch], config.batch, 0)
    for seed in range(config.seeds):
        for row in rows:  # a round a seed: what else the machine does spreads over all rows
            begun = time.perf_counter()
            images = sample(row, tokenizer, labels_n, config.batch, seed)
            row.milliseconds.append(1000 * (time.perf_counter() - begun) / len(labels_n))
            row.accuracy.append(judge.accuracy(images, labels_n))
            row.distinct.append(distinct(images, labels_n, train))
        log.info("seed %d of %d done", seed + 1, config.seeds)
    return rows


def table(rows: list[Setting]) -> str:
    """In Markdown: mean and standard deviation over the seeds; median and range of the time."""
    lines = [
        "| sampling | judge accuracy | `distinct` | ms an image |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        accuracy, varied = np.array(row.accuracy), np.array(row.distinct)
        times = np.array(row.milliseconds)
        lines.append(
            f"| {row.name} | {100 * accuracy.mean():.1f} ± {100 * accuracy.std(ddof=1):.1f} % "
            f"| {varied.mean():.3f} ± {varied.std(ddof=1):.3f} "
            f"| {np.median(times):.1f} ({times.min():.1f} to {times.max():.1f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sys.stdout.write(table(measure(tyro.cli(Config))))
    except InputError as error:
        log.error("%s", error)
        sys.exit(2)


if __name__ == "__main__":
    main()
