"""The ledger of faster sampling: what each way saves, and what it costs a trained model.

``python benchmarks/faster_sampling.py --run runs/digits`` takes the models that
``python -m var_train.run --out runs/digits`` trained, trains a smaller transformer on the same
tokens (once: it is kept in the folder), samples with every setting and writes a table. A run of
other images needs the class of a judge of them: ``--judge package.module:Class``.
"""

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import importlib
import json
import logging
import multiprocessing
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tyro
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, check_integer
from var_train import (
    Gaussian,
    ImageSet,
    LoopConfig,
    MetricsLog,
    TransformerStageConfig,
    TransformerTraining,
    distinct,
    frechet_distance,
    load_digits_split,
    load_image_tree,
    tokens_of,
    train_stage,
)
from var_transformer import SPEEDS, Refiner, Transformer, check_pair, generate

log = logging.getLogger("faster_sampling")


class Judge(Protocol):
    """What judges images; built of the real training images."""

    def accuracy(self, images_ncyx: np.ndarray, labels_n: np.ndarray) -> float:
        """The share of images in [0, 1] that it takes for their class."""

    def features(self, images_ncyx: np.ndarray) -> np.ndarray:
        """(N, F), between which the Frechet distance is measured."""


@dataclass(frozen=True)
class Config:
    """Measure quality, time and memory of faster sampling on a trained run."""

    run: Path = Path("runs/digits")
    """The folder of a run."""
    judge: str = "var_train:DigitJudge"
    """MODULE:CLASS of the judge; it is called with the real training images."""
    per_class: int = 50
    """Images of each class for each setting and seed."""
    seeds: int = 5
    """Seeds 0, 1, ..., at least 2: the table gives mean and standard deviation over them."""
    batch: int = 100
    """Images at once."""
    cfg: float = 1.5
    """Strength of guidance at the last scale, where there is guidance."""


@dataclass
class Row:
    """One row of the table, and what was measured for each seed."""

    name: str
    sampler: dict[str, Any]
    refined: int = 0  # last scales that the small model draws
    is_small: bool = False  # whether it draws all
    accuracy: list[float] = field(default_factory=list)
    distinct: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of processors, an image
    features: list[np.ndarray] = field(default_factory=list)
    frechet: float = 0.0  # of all seeds together
    peak_bytes: int = 0


def rows_of(scales: int, cfg: float) -> list[Row]:
    """The points of ``--speed``, of which 0 is all the work; each other way alone; and sums."""
    rows = []
    for speed, point in enumerate(SPEEDS):
        if len(point.pruned) < scales:
            does = f"no guidance in the last {point.unguided}" if point.unguided else "all the work"
            if point.pruned:
                does += f", {shown(point.pruned)} pruned"
            rows.append(Row(f"`--speed {speed}`: {does}", {"cfg": cfg, "speed": speed}))
    rows.append(Row("no guidance", {"cfg": 0.0}))
    for shares in ((0.25,), (0.5,), (0.5, 0.5)):
        if len(shares) < scales:
            rows.append(Row(f"{shown(shares)} pruned", {"cfg": cfg, "pruned": shares}))
    rows += [Row(f"small model for the last {n}", {"cfg": cfg}, n) for n in (1, 2) if n < scales]
    for speed in (1, 3):
        name = f"`--speed {speed}`, small model for the last 1"
        rows.append(Row(name, {"cfg": cfg, "speed": speed}, 1))
    rows.append(Row("small model alone", {"cfg": cfg}, is_small=True))
    return rows


def shown(shares: tuple[float, ...]) -> str:
    return " and ".join(f"{100 * share:.0f} %" for share in shares)


class Models:
    """The models of a run's folder."""

    def __init__(self, run: Path) -> None:
        self.tokenizer = Tokenizer.load(run / "tokenizer.safetensors")
        self.large = Transformer.load(run / "transformer.safetensors")
        self.small = Transformer.load(run / "small.safetensors")

    def draw(self, row: Row, labels_n: np.ndarray, batch: int, seed: int) -> np.ndarray:
        """Images (N, 3, Y, X) in [0, 1]; N is a multiple of ``batch``."""
        model = self.small if row.is_small else self.large
        refiner = Refiner(self.small, row.refined) if row.refined else None
        parts = []
        for begin in range(0, len(labels_n), batch):
            numbers, labels = range(begin, begin + batch), labels_n[begin : begin + batch]
            drawn = generate(
                *(model, self.tokenizer, labels),
                seed=seed,
                numbers=numbers,
                refiner=refiner,
                **row.sampler,
            )
            parts.append(drawn.images)
        return np.concatenate(parts)


def train_small(run: Path, train: ImageSet, val: ImageSet) -> None:
    """Half as deep and half as wide as the run's, trained as long as the digits' is."""
    path = run / "small.safetensors"
    if path.exists():
        return
    tokenizer = Tokenizer.load(run / "tokenizer.safetensors")
    size = Transformer.load(run / "transformer.safetensors").config
    small = Transformer(
        replace(size, depth=size.depth // 2, width=size.width // 2, heads=size.heads // 2)
    )
    stage = TransformerStageConfig()
    tokens, val_tokens = (tokens_of(tokenizer, images, stage.batch) for images in (train, val))
    training = TransformerTraining(small, tokenizer, tokens, val_tokens, stage, seed=0)
    folder = run / "small"
    metrics = MetricsLog(folder)
    train_stage(training, folder, metrics, LoopConfig(validations=1), settings={}, resume=False)
    metrics.close()
    small.save(path)


def real_images(run: Path, tokenizer: Tokenizer) -> tuple[ImageSet, ImageSet]:
    """The images that the run was trained and validated on."""
    data = json.loads((run / "settings.json").read_text())["data"]
    if data is None:
        return load_digits_split()
    size = tokenizer.config.image_size
    train, val = load_image_tree(Path(data), size, memory_limit=2**33)
    if not isinstance(train, ImageSet) or not isinstance(val, ImageSet):
        raise InputError(f"data is {data}; expected images that fit into 8 GiB")
    return train, val


def load_judge(name: str, train: ImageSet) -> Judge:
    module, _, of_class = name.partition(":")
    try:
        return getattr(importlib.import_module(module), of_class)(train)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"judge is {name!r}: {error}; expected MODULE:CLASS") from error


def measure(config: Config) -> list[Row]:
    check_integer("seeds", config.seeds, 2)
    tokenizer = Tokenizer.load(config.run / "tokenizer.safetensors")
    train, val = real_images(config.run, tokenizer)
    labels_n = np.repeat(np.arange(len(train.classes), dtype=np.int32), config.per_class)
    if len(labels_n) % config.batch:
        raise InputError(f"batch is {config.batch}; expected a divisor of {len(labels_n)} images")
    judge = load_judge(config.judge, train)
    train_small(config.run, train, val)
    models = Models(config.run)
    check_pair(models.large, models.tokenizer)

    rows = rows_of(len(tokenizer.schedule), config.cfg)
    for row in rows:
        row.peak_bytes = peak_memory(config, row)
        models.draw(row, labels_n[: config.batch], config.batch, 0)  # compiles
    for seed in range(config.seeds):
        for row in rows:  # a round a seed: what else the machine does spreads over all rows
            begun = time.process_time()
            images = models.draw(row, labels_n, config.batch, seed)
            row.seconds.append((time.process_time() - begun) / len(labels_n))
            row.accuracy.append(judge.accuracy(images, labels_n))
            row.distinct.append(distinct(images, labels_n, train))
            row.features.append(judge.features(images))
        log.info("seed %d of %d done", seed + 1, config.seeds)
    real = Gaussian.of(judge.features(train.images_nyxc.transpose(0, 3, 1, 2)))
    for row in rows:
        row.frechet = frechet_distance(Gaussian.of(np.concatenate(row.features)), real)
    return rows


def peak_memory(config: Config, row: Row) -> int:
    """Bytes that a process takes at most which draws one batch and does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_after_a_batch, (config, row))


def _peak_after_a_batch(config: Config, row: Row) -> int:
    Models(config.run).draw(row, np.zeros(config.batch, np.int32), config.batch, 0)
    # not getrusage, which counts what the parent held when it started this process
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def table(rows: list[Row]) -> str:
    """In Markdown: mean and standard deviation over the seeds, median and range of the time."""
    lines = [
        "| sampling | judged accuracy | `distinct` | FD | processor ms an image | of all the work "
        "| memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    whole = np.array(rows[0].seconds)
    for row in rows:
        accuracy, varied = np.array(row.accuracy), np.array(row.distinct)
        seconds = np.array(row.seconds)
        ms = 1000 * seconds
        lines.append(
            f"| {row.name} | {100 * accuracy.mean():.1f} ± {100 * accuracy.std(ddof=1):.1f} % "
            f"| {varied.mean():.3f} ± {varied.std(ddof=1):.3f} | {row.frechet:.3f} "
            f"| {np.median(ms):.2f} ({ms.min():.2f} to {ms.max():.2f}) "
            f"| {np.median(seconds / whole):.2f} | {row.peak_bytes / 2**20:.0f} MiB |"
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
