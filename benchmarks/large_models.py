"""One image of each large transformer that stays in its file, in a control group of few GiB.

    python benchmarks/large_models.py --out runs/large

Random weights of the published sizes, in float16 and in int8: their pictures show nothing. Fails
where a command is killed. Writes ``OUT/table.md``. Needs Linux, 8 GB of disk, and the right to
make a control group.
"""

import logging
import math
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from bounded_memory import control_group, peak_of
from var_convert import convert
from var_tokenizer import Tokenizer, TokenizerConfig
from var_tokenizer.common import write_checkpoint
from var_transformer import TransformerConfig, transformer_shapes

log = logging.getLogger("benchmark")

GIB = {"d16": 1.0, "d30": 4.0, "d36-s": 6.0}
_POOL = 2**20  # random numbers, of which every weight is an excerpt


@dataclass(frozen=True)
class Config:
    """Draw an image with transformers that stay in their files, and measure the peaks."""

    out: Path = Path("runs/large")
    """The folder for everything that is written; it is emptied first."""
    models: tuple[Literal["d16", "d30", "d36-s"], ...] = ("d16", "d30", "d36-s")
    """Which to draw with."""
    ordinary: bool = False
    """Also with the whole model in memory, as float32 and outside of the group."""


@dataclass(frozen=True)
class Drawn:
    """What an image took: GiB at the peak, processor seconds, seconds."""

    peak: float
    processor: float
    seconds: float


def save_random(name: str, folder: Path) -> None:
    """Writes a transformer in float16 and in int8, and a tokenizer for both."""
    config = TransformerConfig.preset(name)
    pool = (0.02 * np.random.default_rng(0).standard_normal(_POOL)).astype(np.float16)

    def excerpt(shape: tuple[int, ...]) -> np.ndarray:
        rows, row = math.prod(shape[:-1]), shape[-1]
        strides = 2 * ((_POOL - row) // rows), 2
        return np.lib.stride_tricks.as_strided(pool, (rows, row), strides).reshape(shape)

    tensors = {tensor: excerpt(shape) for tensor, shape in transformer_shapes(config)}
    write_checkpoint(folder / "float16.safetensors", "transformer", config, tensors)
    convert(folder / "float16.safetensors", folder / "int8.safetensors", dtype="int8")
    Tokenizer(TokenizerConfig(scales=config.scales), 0).save(folder / "tokenizer.safetensors")


def draw(folder: Path, dtype: str, group: Path | None, *options: str) -> Drawn:
    """An image by the command; raises SystemExit if it fails."""
    out = str(folder / "-".join(["images", dtype, *options]))
    words = [
        *("var_transformer.sample", "--classes", "207", "--out", out, *options),
        *("--tokenizer", f"{folder}/tokenizer.safetensors"),
        *("--model", f"{folder}/{dtype}.safetensors"),
    ]
    begin, before = time.monotonic(), _processor_seconds()
    peak = peak_of([sys.executable, "-m", *words], group)
    return Drawn(peak / 2**30, _processor_seconds() - before, time.monotonic() - begin)


def _processor_seconds() -> float:
    """Of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(config: Config) -> list[str]:
    """Rows of the table."""
    shutil.rmtree(config.out, ignore_errors=True)
    rows = []
    for name in config.models:
        folder, gib = config.out / name, GIB[name]
        folder.mkdir(parents=True)
        save_random(name, folder)
        results = {}
        with control_group(int(gib * 2**30)) as group:
            for dtype in ("float16", "int8"):
                results[f"{dtype}, in {gib:g} GiB"] = draw(folder, dtype, group, "--low-memory")
        if config.ordinary:
            results["float16, all in memory"] = draw(folder, "float16", None)
        for how, drawn in results.items():
            figures = f"{drawn.peak:.2f} | {drawn.processor:.0f} | {drawn.seconds:.0f}"
            rows.append(f"| {name} | {how} | {figures} |")
            log.info("%s", rows[-1])
        shutil.rmtree(folder)
    return rows


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = tyro.cli(Config)
    head = ["| one image | file | peak, GiB | processor s | s |", "| --- | --- | --- | --- | --- |"]
    table = "\n".join([*head, *run(config)]) + "\n"
    (config.out / "table.md").write_text(table)
    log.info("%s", table)


if __name__ == "__main__":
    main()
