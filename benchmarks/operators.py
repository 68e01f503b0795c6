"""Every operator that has a C++ kernel, against the same composed of MindSpore's operators.

    python benchmarks/operators.py [--pairs 5] [--only WORDS]

At each instruction set of the machine, forward and backward, at the sizes of the digits and of
d16 (256 px), two threads. The two forms take turns in one process; the ratio is the median over
the pairs. Prints those ratios, marks what is above 1.0, and writes ``benchmarks/operators.json``
where all were measured, the source of the table in docs/speed.md. --only: cases whose name
contains the words.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours
sys.path.insert(0, str(Path(__file__).with_name("speed")))

import numpy as np
from machine import THREADS, instruction_sets, machine, versions
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

log = logging.getLogger("benchmark")
TARGET = Path(__file__).with_suffix(".json")
SAMPLE = 0.02  # seconds at least: short passes are repeated
Samples = dict[str, list[float]]


def seconds(function: Callable[..., Any], tensors: Sequence[Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        results(function(*tensors))
    return (time.perf_counter() - start) / times


def results(found: Any) -> list[np.ndarray]:
    """The arrays of a graph, when it has ended."""
    return [t.asnumpy() for t in (found if isinstance(found, tuple) else (found,))]


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest, relative to the largest value."""
    return max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
        for a, b in zip(ours, theirs, strict=True)
    )


def measure(pairs: int, only: str) -> None:
    """In a process of one instruction set: a line of JSON for each case and pass."""
    from mindspore import Tensor, device_context

    device_context.cpu.op_tuning.threads_num(THREADS)  # the packages would leave MindSpore one
    from cases import cases, without_kernels

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    for case in cases():
        if only not in case.name:
            continue
        with without_kernels():
            composed = case.passes()
        forms = {"kernel": case.passes(), "composed": composed}
        tensors = case.tensors()
        for name in forms["kernel"]:
            inputs = {form: list(tensors) for form in forms}
            if name == "backward":
                result = results(forms["kernel"]["forward"](*tensors))[0]
                gradient = np.random.default_rng(1).standard_normal(result.shape)
                for form in forms:
                    inputs[form].append(Tensor(gradient.astype(np.float32)))
            functions = {form: passes[name] for form, passes in forms.items()}
            first = {f: results(functions[f](*inputs[f])) for f in forms}  # compiles
            times = {f: seconds(functions[f], inputs[f], 1) for f in forms}
            repeats = min(50, max(1, round(SAMPLE / min(times.values()))))
            samples: Samples = {form: [] for form in forms}
            for turn in range(pairs):
                for form in forms if turn % 2 else reversed(forms):
                    samples[form].append(seconds(functions[form], inputs[form], repeats))
            found = {
                "case": case.name,
                "model": case.model,
                "operator": case.operator,
                "pass": name,
                "difference": difference(first["kernel"], first["composed"]),
                "seconds": samples,
            }
            answers.write(json.dumps(found) + "\n")
            answers.flush()


def ratio(samples: Samples) -> float:
    """Kernel / composed, the median over the pairs."""
    return median(a / b for a, b in zip(samples["kernel"], samples["composed"], strict=True))


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("set", "operator", "pass", "kernel", "composed", "ratio", "difference")
    for row in rows:
        kernel, composed = (1e3 * median(row["seconds"][f]) for f in ("kernel", "composed"))
        value = ratio(row["seconds"])
        mark = f"[bold red]{value:.2f} <<<" if value > 1 else f"{value:.2f}"
        times = f"{kernel:.3f} ms", f"{composed:.3f} ms", mark, f"{row['difference']:.0e}"
        table.add_row(row["set"], row["case"], row["pass"], *times)
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler()])
    if options.measure:
        return measure(options.pairs, options.only)
    rows = []
    for name in instruction_sets():
        log.info("%s", name)
        words = [sys.executable, __file__, "--measure", f"--pairs={options.pairs}"]
        environment = os.environ | {"VAR_CPU": name, "OMP_NUM_THREADS": str(THREADS)}
        with subprocess.Popen(
            [*words, f"--only={options.only}"], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            for line in process.stdout or ():
                rows.append({"set": name} | json.loads(line))
                row = rows[-1]
                log.info("%s %s %.2f", row["case"], row["pass"], ratio(row["seconds"]))
        if process.returncode:
            raise SystemExit(f"the process of {name} ended with {process.returncode}")
    show(rows)
    if options.only:
        return None
    for row in rows:
        row["ratio"] = round(ratio(row["seconds"]), 3)
        row["seconds"] = {form: round(median(row["seconds"][form]), 7) for form in row["seconds"]}
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = json.dumps({"machine": machine(), "versions": versions({})}, indent=1)
    written = TARGET.with_suffix(".tmp")
    written.write_text(f'{head[:-2]},\n "operators": [\n{lines}\n]}}\n')
    written.replace(TARGET)
    log.info("wrote %s", TARGET)
    return None


if __name__ == "__main__":
    main()
