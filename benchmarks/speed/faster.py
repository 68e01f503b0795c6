"""d16 at each point of ``--speed`` against eager PyTorch, which does all the work.

    python benchmarks/speed/faster.py --weights DIR [--turns 3] [--set v3]

The weights are random, so nothing is said of the images. One image, 256x256, float32, two threads;
the two processes take turns, and a ratio is the median over the turns. Prints a table.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from machine import environment, instruction_sets
from pairs import HERE, Side
from var_transformer import SPEEDS


def main() -> None:
    os.environ.setdefault("GLOG_v", "3")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="made where they are missing")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--set", default=instruction_sets()[0], choices=instruction_sets())
    given = parser.parse_args()
    pythons = dict.fromkeys(("ours", "torch"), sys.executable)
    given.weights.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "pytorch.py"), str(given.weights)], check=True)
    held = environment(given.set)
    ours, torch = (Side(side, "generate", given.weights, pythons[side], held) for side in pythons)
    jobs = [f"speed_{n}" for n in range(len(SPEEDS))]
    turns: list[dict[str, dict]] = []
    for turn in range(given.turns + 1):  # the first compiles
        answers = {job: ours.run(job) for job in jobs} | {"torch": torch.run("generate_b1")}
        if turn:
            turns.append(answers)
    for side in (ours, torch):
        side.close()
    lines = [
        f"| {given.set} | seconds | of PyTorch's | processor seconds | of PyTorch's |",
        "| --- | --- | --- | --- | --- |",
    ]
    names = {job: f"`--speed {n}`" for n, job in enumerate(jobs)} | {"torch": "PyTorch"}
    for job, name in names.items():
        cells = [name]
        for kind in ("seconds", "processor_seconds"):
            cells.append(f"{median(turn[job][kind] for turn in turns):.2f}")
            cells.append(f"{median(t[job][kind] / t['torch'][kind] for t in turns):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
