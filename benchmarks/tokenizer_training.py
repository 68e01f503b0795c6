"""The runs behind docs/training-a-tokenizer.md: one for each remedy, measured and drawn.

    python benchmarks/tokenizer_training.py --data DIR --out runs/remedies

``DIR/train`` and ``DIR/val`` hold images of 32x32. Trains the guide's tokenizer once, and for the
table one short run for each remedy; a finished run is not repeated, an interrupted one goes on.
Writes ``table.md``, ``curves.png`` and what ``var_train.evaluate`` writes for each run. The chart
needs matplotlib.
"""

import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

log = logging.getLogger("benchmark")

GUIDE = (
    *("--tokenizer.scales", "1", "2", "3", "4", "6", "8"),
    *("--tokenizer.vocab-size", "1024", "--tokenizer.latent-channels", "16"),
    *("--tokenizer.channels", "32", "--tokenizer.channel-multipliers", "1", "1", "2"),
    *("--tokenizer.res-blocks", "1"),
    *("--train-tokenizer.losses.l1", "0", "--train-tokenizer.losses.l2", "5"),
    *("--train-tokenizer.codebook.start", "kmeans", "--train-tokenizer.codebook.update", "ema"),
)
HEADLINE = ("--train-tokenizer.epochs", "4", "--loop.validations", "4")
SHORT = ("--train-tokenizer.epochs", "1", "--loop.validations", "2")
START, UPDATE = "--train-tokenizer.codebook.start", "--train-tokenizer.codebook.update"
REVIVE = ("--train-tokenizer.codebook.revive-every", "0")
REMEDIES = {
    "base": ("the guide's setting", ()),
    "data_start": ("start from the data, not by k-means", (START, "data")),
    "random_start": ("random start", (START, "random")),
    "gradient": ("codes follow the gradient, not moving averages", (UPDATE, "gradient")),
    "no_revival": ("no revival", REVIVE),
    "cosine": ("cosine lookup on", ("--tokenizer.using-znorm",)),
    "scale_dropout": (
        "scale dropout of 0.3 on",
        ("--train-tokenizer.codebook.scale-dropout", "0.3"),
    ),
    "all_off": ("none of them", (START, "random", UPDATE, "gradient", *REVIVE)),
}


@dataclass(frozen=True)
class Config:
    """Train, measure and tabulate the remedies against a codebook's collapse."""

    data: Path
    """An image tree of 32x32 images, DATA/train/CLASS/* and DATA/val/CLASS/*."""
    out: Path = Path("runs/remedies")
    """The folder of the runs."""


def run(config: Config, name: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """Trains the run ``name`` where it is not finished; returns its figures on DATA/val."""
    folder = config.out / name
    if not (folder / "report.json").exists():
        command = ("-m", "var_train.run", "--stage", "tokenizer", "--data", str(config.data))
        _python(*command, "--out", str(folder), *GUIDE, *settings)
    measured = folder / "evaluation" / "tokenizer.json"
    if not measured.exists():
        _python(
            *("-m", "var_train.evaluate", "tokenizer", "--data", str(config.data / "val")),
            *("--tokenizer", str(folder / "tokenizer.safetensors"), "--out", str(measured.parent)),
        )
    return json.loads(measured.read_text())


def _python(*arguments: str) -> None:
    log.info("python %s", " ".join(arguments))
    subprocess.run([sys.executable, *arguments], check=True)


def table(figures: dict[str, dict[str, Any]]) -> str:
    """A row of Markdown for each run."""
    rows = [
        "| run | PSNR, dB | usage | codes in use at each scale |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in figures.items():
        codes = ", ".join(str(n) for n in found["scale_codes_used"])
        title = REMEDIES[name][0] if name in REMEDIES else "the guide's tokenizer, 4 epochs"
        rows.append(f"| {title} | {found['psnr']:.2f} | {found['codebook_usage']:.3f} | {codes} |")
    return "\n".join(rows) + "\n"


def chart(metrics: Path, target: Path) -> None:
    """Loss, perplexity of each scale and held-out PSNR over the steps of a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "tokenizer"]
    held_out = [line for line in lines if line["stage"] == "validation"]
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    place = [line["step"] for line in steps]
    left.plot(place, [line["reconstruction"] for line in steps], linewidth=0.6)
    left.set(title="reconstruction loss", xlabel="step", yscale="log")
    scales = len(steps[0]["perplexity"])
    for k in range(scales):
        smooth = _smooth([line["perplexity"][k] for line in steps])
        middle.plot(place, smooth, label=f"scale {k + 1}", linewidth=0.9)
    middle.set(title="perplexity, by scale", xlabel="step")
    middle.legend(fontsize=7)
    for line in held_out:
        right.plot(range(1, scales + 1), line["scale_psnr"], "o-", label=f"step {line['step']}")
    right.set(title="held-out PSNR after each scale, dB", xlabel="scale")
    right.legend(fontsize=7)
    written = target.with_suffix(".tmp.png")
    figure.savefig(written, dpi=90)
    written.replace(target)


def _smooth(values: list[float], keep: float = 0.95) -> list[float]:
    average, smooth = values[0], []
    for value in values:
        average = keep * average + (1 - keep) * value
        smooth.append(average)
    return smooth


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = tyro.cli(Config, description=__doc__)
    figures = {"guide": run(config, "guide", HEADLINE)}
    for name, (_, settings) in REMEDIES.items():
        figures[name] = run(config, name, (*SHORT, *settings))
    written = config.out / "table.tmp"
    written.write_text(table(figures))
    written.replace(config.out / "table.md")
    chart(config.out / "guide" / "metrics.jsonl", config.out / "curves.png")
    log.info("%s", table(figures))


if __name__ == "__main__":
    main()
