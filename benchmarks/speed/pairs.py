"""This project against PyTorch, torch.compile and OpenVINO, in turn: ``nox -s bench``.

    python benchmarks/speed/pairs.py [--pairs 5] [--parts codec generate train first]
        [--torch PYTHON] [--openvino PYTHON]

d16, 256x256, float32, random weights, two threads, at each instruction set of the machine. For
each part the processes of all sides are loaded and then work in turn, so that what else the
machine does meets all. Prints medians and ratios, and writes ``benchmarks/latest.json`` with
every sample where all parts were measured.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tables
from inputs import TRAINING_BATCH
from machine import THREADS, environment, instruction_sets, machine, versions
from rich.console import Console
from rich.logging import RichHandler

log = logging.getLogger("benchmark")
HERE = Path(__file__).parent
LATEST = HERE.parent / "latest.json"
JOBS = {
    "codec": ("encode", "decode"),
    "generate": ("generate_b1", "generate_b4"),
    "train": ("train",),
}
SIDES = {  # torch.compile's step would be a third process of 8 GiB
    "codec": ("ours", "torch", "compiled", "openvino"),
    "generate": ("ours", "torch", "compiled", "openvino"),
    "train": ("ours", "torch"),
}


class Side:
    """A worker process of one side, held to an instruction set."""

    def __init__(self, side: str, part: str, weights: Path, python: str, held: dict) -> None:
        self.name = side
        self._cache = tempfile.TemporaryDirectory()  # of torch.compile: empty
        command = [python, str(HERE / "worker.py"), side, part, str(weights)]
        own = {"OMP_NUM_THREADS": str(THREADS), "TORCHINDUCTOR_CACHE_DIR": self._cache.name}
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | held | own,
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
        self._cache.cleanup()


@dataclass
class Report:
    """What ``latest.json`` holds of one instruction set."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Of each job, of each side, in the order of the turns."""
    peak_memory_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    split_seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Where the time of one image goes, of ours and of PyTorch."""
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of each job, how far ours is from each other side."""
    first_image_seconds: dict[str, list[float]] = field(default_factory=dict)
    """From the start of a new process: ours by what its cache of graphs holds, and each peer."""
    multiply_adds_per_second: dict[str, float] = field(default_factory=dict)
    """Of a large product of matrices, of ours and of PyTorch."""


def make_weights(folder: Path, pythons: dict[str, str]) -> None:
    """Random ones of d16 and its tokenizer, and OpenVINO's graphs, where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, script in (("torch", "pytorch.py"), ("openvino", "converted.py")):
        subprocess.run([pythons[side], str(HERE / script), str(folder)], check=True)


def measure(
    report: Report, part: str, name: str, pairs: int, weights: Path, pythons: dict[str, str]
) -> dict[str, float]:
    """Runs the jobs of ``part`` on all sides in turn; returns the multiply-adds of a job."""
    held = environment(name)
    sides = [Side(side, part, weights, pythons[side], held) for side in SIDES[part]]
    memory: dict[str, int] = {}
    for job in JOBS[part]:
        samples: dict[str, list[float]] = {side.name: [] for side in sides}
        first = {}
        for side in sides:  # compiles, warms up
            first[side.name] = side.run(job)["result"]
        if not job.startswith("generate"):
            report.agreement[job] = differences(first)
        for _ in range(pairs):
            for side in sides:
                answer = side.run(job)
                samples[side.name].append(round(answer["seconds"], 4))
                memory[side.name] = answer["peak_memory"]
        report.seconds[job] = samples
        log.info("%s %s: %s", name, job, {s: round(median(of), 3) for s, of in samples.items()})
    report.peak_memory_bytes[part] = memory
    ours, torch = sides[0], sides[1]
    if part == "generate":
        likeliest = {side.name: side.run("likeliest")["result"] for side in sides}
        report.agreement["generate"] = differences(likeliest)
        report.split_seconds = {side.name: side.run("split")["result"] for side in (ours, torch)}
    if part == "codec":
        for side in (ours, torch):
            report.multiply_adds_per_second[side.name] = side.run("peak")["result"]
    work = torch.run("work")["result"] if part != "train" else {}
    for side in sides:
        side.close()
    return work


def differences(results: dict[str, list[Any]]) -> dict[str, float]:
    """Of ours and each other: of ids the share that differs; of numbers the largest difference,
    relative above 1."""
    found = {}
    a = np.asarray(results["ours"])
    for side in results.keys() - {"ours"}:
        b = np.asarray(results[side])
        if a.dtype.kind in "iu":
            found[side] = float((a != b).mean())
        else:
            found[side] = float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())
    return found


def first_image(
    report: Report, name: str, weights: Path, pythons: dict[str, str], runs: int = 3
) -> None:
    """``python -m var_transformer.sample`` from start to end, one image; with compiled graphs, too.

    The first of two processes finds an empty cache of graphs, the second what the first left.
    Peers load, compile and draw one image.
    """
    files = ["--tokenizer", weights / "vae.safetensors", "--model", weights / "var.safetensors"]
    command = [sys.executable, "-m", "var_transformer.sample", *files, "--classes", "207", "--out"]
    held = os.environ | environment(name) | {"OMP_NUM_THREADS": str(THREADS)}

    def note(kind: str, start: float) -> None:
        report.first_image_seconds.setdefault(kind, []).append(time.perf_counter() - start)

    for _ in range(runs):
        with tempfile.TemporaryDirectory() as empty:
            for cache in ("empty", "filled"):
                start = time.perf_counter()
                words = [*map(str, command), f"{empty}/{cache}"]
                own = held | {"XDG_CACHE_HOME": empty}
                subprocess.run(words, env=own, check=True, stderr=subprocess.DEVNULL)
                note(cache, start)
    for name in SIDES["generate"][1:]:
        side = Side(name, "generate", weights, pythons[name], held)
        side.run("generate_b1")
        note(name, side.started)
        side.close()
    log.info("first image: %s", {k: median(s) for k, s in report.first_image_seconds.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=(*JOBS, "first"), default=(*JOBS, "first"))
    parser.add_argument("--weights", type=Path, default=Path("runs/bench"))
    parser.add_argument("--torch", default=sys.executable, help="Python that has PyTorch")
    parser.add_argument("--openvino", default=sys.executable, help="Python that has OpenVINO")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler()])
    pythons = {"ours": sys.executable, "torch": options.torch, "compiled": options.torch}
    pythons["openvino"] = options.openvino
    make_weights(options.weights, pythons)
    reports: dict[str, Report] = {}
    multiply_adds: dict[str, float] = {}
    for name in instruction_sets():
        report = reports[name] = Report()
        for part in options.parts:
            if part == "first":
                first_image(report, name, options.weights, pythons)
            else:
                of = measure(report, part, name, options.pairs, options.weights, pythons)
                multiply_adds |= of
    peers = {package: python for package, python in pythons.items() if package != "compiled"}
    content = {
        "machine": machine(),
        "versions": versions(peers),
        "training_batch": TRAINING_BATCH,
        "multiply_adds": multiply_adds,
        "sets": {name: asdict(report) for name, report in reports.items()},
    }
    for text in (tables.speed(content), tables.differences(content)):
        Console(width=140).print(text, markup=False)
    if set(options.parts) < {*JOBS, "first"}:
        return
    written = LATEST.with_suffix(".tmp")
    written.write_text(json.dumps(content, indent=1) + "\n")
    written.replace(LATEST)
    tables.main()
    log.info("wrote %s and its tables in the pages", LATEST)


if __name__ == "__main__":
    main()
