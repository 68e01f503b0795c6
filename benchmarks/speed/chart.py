"""Draws ``docs/pictures/speed.png`` from ``latest.json`` and ``growth.json``."""

from statistics import median

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from tables import ROOT, limits, records

PARTS = ("transformer", "decoder", "tokenizer", "sampling")


def main() -> None:
    latest, growth, _ = records()
    best = next(iter(latest["sets"].values()))  # the highest instruction set
    figure, axes = pyplot.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
    bars = [("limit", limits(latest, best))]
    bars += [(name, best["split_seconds"][name]) for name in ("ours", "torch")]
    bottom = [0.0] * len(bars)
    for part in PARTS:
        seconds = [of.get(part, 0.0) for _, of in bars]
        axes[0].bar([name for name, _ in bars], seconds, bottom=bottom, label=part)
        bottom = [b + s for b, s in zip(bottom, seconds, strict=True)]
    axes[0].set(title="one image of d16, seconds")
    axes[0].legend(fontsize=8)
    for axis, (kind, of) in zip(axes[1:], growth.items(), strict=True):
        axis.plot([int(n) for n in of], [median(s) for s in of.values()], "o-")
        axis.set(title="seconds a generation", xlabel=kind, ylim=(0, None))
        axis.set_xticks([int(n) for n in of])
    target = ROOT / "docs" / "pictures" / "speed.png"
    target.parent.mkdir(exist_ok=True)
    written = target.with_suffix(".tmp.png")
    figure.savefig(written, dpi=90)
    written.replace(target)


if __name__ == "__main__":
    main()
