"""Peak memory of the commands at 256 px, each in a control group of so many GiB.

    python benchmarks/bounded_memory.py --out runs/memory

Random weights of the published sizes. Trains two steps of one image with recompute, validates and
draws; goes on from the first step's checkpoint; draws 16 images; evaluates the tokenizer on 50.
Fails where one of them is killed. Writes ``OUT/table.md``. Needs Linux, and the right to make a
control group.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from var_tokenizer import Tokenizer, TokenizerConfig

log = logging.getLogger("benchmark")

TOP = Path("/sys/fs/cgroup")
TWO_STEPS = (
    *("--stage", "transformer", "--train-transformer.epochs", "1"),
    *("--train-transformer.batch", "1", "--train-transformer.recompute"),
    *("--loop.checkpoint-every", "1", "--loop.validations", "1", "--sampling.per-class", "1"),
)
CLASSES = ("cat", "dog")
_LOOK = 0.01  # seconds between two looks at a command's memory


@dataclass(frozen=True)
class Config:
    """Run the commands of VAR-d16 at 256 px in a control group, and measure their peaks."""

    out: Path = Path("runs/memory")
    """The folder for everything that is written; it is emptied first."""
    gib: float = 8
    """The limit of the group."""
    depth: int = 16
    """Blocks of the transformer, which is 64 times as wide."""
    samples: int = 16
    """Images to draw, an even number."""
    images: int = 50
    """Images to evaluate the tokenizer on, at least 4."""


def commands(config: Config) -> dict[str, tuple[str, ...]]:
    """What runs, by what the table calls it."""
    out, depth = config.out, config.depth
    tokenizer, model = str(out / "tokenizer.safetensors"), str(out / "run/transformer.safetensors")
    train = (
        *("var_train.run", *TWO_STEPS, "--tokenizer-file", tokenizer),
        *("--data", str(out / "images"), "--out", str(out / "run")),
        *("--transformer.depth", str(depth), "--transformer.width", str(64 * depth)),
        *("--transformer.heads", str(depth)),
    )
    pair = ("--tokenizer", tokenizer, "--model", model)
    each = str(config.samples // len(CLASSES))
    return {
        "two steps, a validation, the samples": train,
        "the same from the first step's checkpoint": train,
        f"{config.samples} images": (
            *("var_transformer.sample", *pair, "--classes", "all", "--per-class", each),
            *("--out", str(out / "samples"), "--cfg", "1.5"),
        ),
        f"the tokenizer on {config.images} images": (
            *("var_train.evaluate", "tokenizer", "--tokenizer", tokenizer),
            *("--data", str(out / "evaluated"), "--out", str(out / "evaluation")),
        ),
    }


def prepare(config: Config) -> None:
    """Writes a tokenizer and images."""
    shutil.rmtree(config.out, ignore_errors=True)
    Tokenizer(TokenizerConfig(), 0).save(config.out / "tokenizer.safetensors")
    save_images(config.out / "images", (f"{s}/{c}" for s in ("train", "val") for c in CLASSES))
    save_images(config.out / "evaluated", (str(n) for n in range(config.images)))


def run(config: Config) -> list[tuple[str, float, float]]:
    """What ran, its peak in GiB, its seconds; raises SystemExit if one fails."""
    prepare(config)
    results = []
    with control_group(int(config.gib * 2**30)) as group:
        for name, words in commands(config).items():
            if "checkpoint" in name:
                (config.out / "run/checkpoints/transformer/step-000000002.safetensors").unlink()
            begin = time.monotonic()
            peak = peak_of([sys.executable, "-m", *words], group)
            results.append((name, peak / 2**30, time.monotonic() - begin))
            log.info("%s: %.2f GiB, %.0f s", *results[-1])
    return results


def peak_of(words: list[str], group: Path | None) -> int:
    """The most memory, in bytes, that a command of a control group, if any, held at a time.

    Without the pages of files that it maps, which the system takes back. Raises SystemExit if it
    fails.
    """
    if group is not None:
        words = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *words]
    process, peak = subprocess.Popen(words, env=os.environ | {"GLOG_v": "3"}), 0
    while process.poll() is None:
        peak = max(peak, _own_memory(process.pid))
        time.sleep(_LOOK)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: ended with {process.returncode}")
    return peak


def _own_memory(process: int) -> int:
    """The bytes of memory that a process has for itself now; 0 if it has just ended."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * sum(map(int, re.findall(r"(?:RssAnon|RssShmem):\s+([0-9]+) kB", status)))


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A control group of ``limit`` bytes, without swap; raises OSError where none can be made."""
    old = (TOP / "memory" / "memory.limit_in_bytes").exists()
    group = Path(TOP, "memory" if old else "", f"var-{os.getpid()}")
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
        swap = group / ("memory.swappiness" if old else "memory.swap.max")
        if swap.exists():
            swap.write_text("0")
        yield group
    finally:
        group.rmdir()


def save_images(folder: Path, names: Iterator[str]) -> None:
    """An image of noise for each name, NAME/0.png."""
    for seed, name in enumerate(names):
        noise_yxc = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        (folder / name).mkdir(parents=True)
        Image.fromarray(noise_yxc).save(folder / name / "0.png")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = tyro.cli(Config)
    rows = [f"| {name} | {peak:.2f} | {seconds:.0f} |" for name, peak, seconds in run(config)]
    head = [
        f"| d{config.depth}, 256 px, in {config.gib:g} GiB | peak, GiB | s |",
        "| --- | --- | --- |",
    ]
    table = "\n".join([*head, *rows]) + "\n"
    (config.out / "table.md").write_text(table)
    log.info("%s", table)


if __name__ == "__main__":
    main()
