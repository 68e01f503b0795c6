"""This project against the PyTorch reference, pair by pair: ``nox -s bench``.

    python benchmarks/speed/pairs.py [--pairs 7] [--parts codec generate train first]

d16, 256x256, float32, random weights, two threads. For each part two processes are loaded and
then work in turn, so that what else the machine does meets both. Prints medians and ratios,
and writes ``benchmarks/latest.json`` with every sample where all parts were measured.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from worker import THREADS, TRAINING_BATCH

log = logging.getLogger("benchmark")
LATEST = Path(__file__).resolve().parents[1] / "latest.json"
GIB = 2**30
CODEC, GENERATE, TRAIN = ("encode", "decode"), ("generate_b1", "generate_b4"), ("train",)
PARTS = {"codec": CODEC, "generate": GENERATE, "train": TRAIN}


class Side:
    """A worker process of one side."""

    def __init__(self, side: str, part: str, weights: Path) -> None:
        self.name = side
        worker = Path(__file__).with_name("worker.py")
        command = [sys.executable, str(worker), side, part, str(weights)]
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdin and self._process.stdout
        self._jobs, self._answers = self._process.stdin, self._process.stdout

    def run(self, job: str) -> dict[str, Any]:
        self._jobs.write(job + "\n")
        self._jobs.flush()
        answer = self._answers.readline()
        if not answer:
            raise SystemExit(f"the process of {self.name} ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self._jobs.close()
        self._process.wait()


@dataclass
class Report:
    """What ``latest.json`` holds."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Of each job, of each side, in the order of the pairs."""
    peak_memory_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    split_seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Where the time of one image goes, of each side."""
    agreement: dict[str, float] = field(default_factory=dict)
    first_image_seconds: dict[str, list[float]] = field(default_factory=dict)
    """From the start of a new process, by what its cache of compiled graphs holds."""
    multiply_adds: dict[str, float] = field(default_factory=dict)
    multiply_adds_per_second: float = 0.0

    def ratios(self) -> dict[str, float]:
        found = {
            "train_step" if job == "train" else job: ratio(of) for job, of in self.seconds.items()
        }
        for part, of in self.peak_memory_bytes.items():
            found[f"memory_{part}"] = of["ours"] / of["torch"]
        return {name: round(ratio, 3) for name, ratio in found.items()}


def make_weights(folder: Path) -> None:
    """Random ones of d16 and its tokenizer, drawn by PyTorch, where they are missing in a folder.

    ``vae.safetensors`` and ``var.safetensors``, carried over by var-convert.
    """
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
        if not target.exists():
            log.info("drawing %s", target)
            source = folder / f"{name}.pth"
            torch.save(build().state_dict(), source)
            convert(source, target)
            source.unlink()


def ratio(samples: dict[str, list[float]]) -> float:
    """Ours / PyTorch, the median over the pairs."""
    return median(a / b for a, b in zip(samples["ours"], samples["torch"], strict=True))


def measure(report: Report, part: str, pairs: int, weights: Path) -> None:
    """Runs the jobs of ``part`` on both sides in turn."""
    sides = [Side(name, part, weights) for name in ("ours", "torch")]
    memory: dict[str, int] = {}
    for job in PARTS[part]:
        samples: dict[str, list[float]] = {side.name: [] for side in sides}
        first = {side.name: side.run(job)["result"] for side in sides}  # compiles, warms up
        if not job.startswith("generate"):
            report.agreement[job] = difference(first["ours"], first["torch"])
        for _ in range(pairs):
            for side in sides:
                answer = side.run(job)
                samples[side.name].append(answer["seconds"])
                memory[side.name] = answer["peak_memory"]
        report.seconds[job] = samples
        log.info("%s: ours / PyTorch %.3f", job, ratio(samples))
    report.peak_memory_bytes[part] = memory
    if part == "generate":
        likeliest = {side.name: side.run("likeliest")["result"] for side in sides}
        report.agreement["generate"] = difference(likeliest["ours"], likeliest["torch"])
        report.split_seconds = {side.name: side.run("split")["result"] for side in sides}
    if part != "train":
        report.multiply_adds |= sides[1].run("work")["result"]
    if part == "codec":
        report.multiply_adds_per_second = sides[1].run("peak")["result"]["multiply_adds_per_second"]
    for side in sides:
        side.close()


def difference(ours: list[Any], theirs: list[Any]) -> float:
    """Of ids the share that differs; of numbers the largest difference, relative above 1."""
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.dtype.kind in "iu":
        return float((a != b).mean())
    return float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())


def first_image(report: Report, weights: Path, runs: int = 3) -> None:
    """``python -m var_transformer.sample`` from start to end, one image; with compiled graphs, too.

    The first of two processes finds an empty cache of graphs, the second what the first left.
    """
    files = ["--tokenizer", weights / "vae.safetensors", "--model", weights / "var.safetensors"]
    command = [sys.executable, "-m", "var_transformer.sample", *files, "--classes", "207", "--out"]
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as empty:
            environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "XDG_CACHE_HOME": empty}
            for cache in ("empty", "filled"):
                start = time.perf_counter()
                words = [*map(str, command), f"{empty}/{cache}"]
                subprocess.run(words, env=environment, check=True, stderr=subprocess.DEVNULL)
                seconds = time.perf_counter() - start
                report.first_image_seconds.setdefault(cache, []).append(seconds)
                log.info("first image, %s cache of graphs: %.1f s", cache, seconds)


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": THREADS,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    names = ("mindspore", "torch", "numpy", "var-tokenizer", "var-transformer", "var-train")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def show(report: Report) -> None:
    table = Table("", "ours", "PyTorch", "ours / PyTorch")
    ratios = report.ratios()
    for job, of in report.seconds.items():
        name = "train_step" if job == "train" else job
        values = (f"{median(of[side]):.2f} s" for side in ("ours", "torch"))
        table.add_row(name, *values, f"{ratios[name]:.2f}")
    for part, peak in report.peak_memory_bytes.items():
        values = (f"{peak[side] / GIB:.2f} GiB" for side in ("ours", "torch"))
        table.add_row(f"memory_{part}", *values, f"{ratios[f'memory_{part}']:.2f}")
    for part in sorted({*(p for of in report.split_seconds.values() for p in of)}):
        values = (f"{report.split_seconds[s].get(part, 0):.2f} s" for s in ("ours", "torch"))
        table.add_row(f"one image: {part}", *values, "")
    for cache, seconds in report.first_image_seconds.items():
        table.add_row(f"first image, {cache} cache", f"{median(seconds):.1f} s", "", "")
    for job, value in report.agreement.items():
        table.add_row(f"difference: {job}", f"{value:.1e}", "", "")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "first"), default=(*PARTS, "first"))
    parser.add_argument("--weights", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler()])
    make_weights(options.weights)
    report = Report()
    for part in options.parts:
        if part == "first":
            first_image(report, options.weights)
        else:
            measure(report, part, options.pairs, options.weights)
    show(report)
    if set(options.parts) < {*PARTS, "first"}:
        return
    content = {
        "ratio": report.ratios(),
        "machine": machine(),
        "versions": versions(),
        "training_batch": TRAINING_BATCH,
        **report.__dict__,
    }
    written = LATEST.with_suffix(".tmp")
    written.write_text(json.dumps(content, indent=1) + "\n")
    written.replace(LATEST)
    log.info("wrote %s", LATEST)


if __name__ == "__main__":
    main()
