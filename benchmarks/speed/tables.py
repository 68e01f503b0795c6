"""The tables of the READMEs and of docs/speed.md, from the records in ``benchmarks``.

python benchmarks/speed/tables.py     # writes them between <!-- NAME --> and <!-- end -->
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "docs" / "speed.md")
GIB = 2**30
NAMES = {"v4": "AVX-512", "v3": "AVX2", "neon": "NEON"}
PEERS = {"torch": "PyTorch", "compiled": "torch.compile", "openvino": "OpenVINO"}
SIDES = {"ours": "this project"} | PEERS
JOBS = {
    "encode": "encode one image",
    "decode": "decode one image",
    "generate_b1": "one image",
    "generate_b4": "four images",
    "train": "training step, batch 2",
}
MEMORY = {
    "codec": "memory, encode and decode",
    "generate": "memory, generate",
    "train": "memory, training step",
}
Latest = dict[str, Any]


def ratio(samples: dict[str, list[float]], side: str) -> float:
    """Ours / a side, the median over the turns."""
    return median(a / b for a, b in zip(samples["ours"], samples[side], strict=True))


def rows(of: Latest) -> dict[str, tuple[dict[str, str], dict[str, float]]]:
    """Of one instruction set: by row, what each side takes, and ours / each peer."""
    found = {}
    for job, row in JOBS.items():
        if samples := of["seconds"].get(job):
            values = {side: f"{median(samples[side]):.2f} s" for side in samples}
            found[row] = values, {side: ratio(samples, side) for side in samples}
    for part, row in MEMORY.items():
        if peak := of["peak_memory_bytes"].get(part):
            values = {side: f"{peak[side] / GIB:.2f} GiB" for side in peak}
            found[row] = values, {side: peak["ours"] / peak[side] for side in peak}
    return found


def table(heads: list[str], body: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def speed(latest: Latest) -> str:
    """What every side takes, a table for each instruction set."""
    tables = []
    for name, of in latest["sets"].items():
        body = [
            [row, *(values.get(side, "-") for side in SIDES), f"{ratios['torch']:.2f}"]
            for row, (values, ratios) in rows(of).items()
        ]
        heads = [NAMES[name], *SIDES.values(), "ours / PyTorch"]
        tables.append(table(heads, body))
    return "\n\n".join(tables)


def ratios(latest: Latest) -> str:
    """Ours / PyTorch, and ours / the best of the other peers."""
    heads = ["ours / peer"]
    cells: dict[str, list[str]] = {}
    for name, of in latest["sets"].items():
        heads += [f"{NAMES[name]}: PyTorch", "torch.compile or OpenVINO"]
        for row, (_, ratios) in rows(of).items():
            others = [ratios[side] for side in ("compiled", "openvino") if side in ratios]
            best = f"{max(others):.2f}" if others else "-"
            cells.setdefault(row, [row]).extend((f"{ratios['torch']:.2f}", best))
    return table(heads, list(cells.values()))


def limits(latest: Latest, of: Latest) -> dict[str, float]:
    """Seconds of one image's parts if all multiply-adds ran at the measured peak."""
    work, peak = latest["multiply_adds"], max(of["multiply_adds_per_second"].values())
    decoder = work["decode"] / peak
    return {"transformer": work["generate_b1"] / peak - decoder, "decoder": decoder}


def parts(latest: Latest) -> str:
    """Where the time of one image goes."""
    tables = []
    for name, of in latest["sets"].items():
        peak = max(of["multiply_adds_per_second"].values()) / 1e9
        heads = [NAMES[name], "ours", "PyTorch", f"limit at {peak:.0f} G/s", "of the limit"]
        body = []
        for part, seconds in of["split_seconds"]["ours"].items():
            theirs = of["split_seconds"]["torch"].get(part)
            limit = limits(latest, of).get(part)
            shown = (f"{s:.2f} s" if s is not None else "-" for s in (seconds, theirs, limit))
            share = f"{limit / seconds:.0%}" if limit else "-"
            body.append([part, *shown, share])
        tables.append(table(heads, body))
    return "\n\n".join(tables)


def first(latest: Latest) -> str:
    """From the start of a process to its first image."""
    kinds = {"empty": "this project", "filled": "with the graphs of an earlier run"} | PEERS
    heads = ["first image", *(NAMES[name] for name in latest["sets"])]
    found = [of["first_image_seconds"] for of in latest["sets"].values()]
    body = [
        [words, *(f"{median(of[kind]):.1f} s" if kind in of else "-" for of in found)]
        for kind, words in kinds.items()
    ]
    return table(heads, body)


def differences(latest: Latest) -> str:
    """How far ours is from each peer, the largest of all instruction sets."""
    words = {
        "encode": "encoded ids that differ",
        "decode": "decoded pixels",
        "generate": "likeliest ids that differ",
        "train": "loss and gradient norm, relative",
    }
    body = []
    for job, row in words.items():
        found = [of["agreement"].get(job, {}) for of in latest["sets"].values()]
        cells = []
        for side in PEERS:
            values = [of[side] for of in found if side in of]
            cells.append(f"{max(values):.0e}" if values else "-")
        body.append([row, *cells])
    return table(["ours against", *PEERS.values()], body)


def growth(growing: Latest) -> str:
    """Seconds of a generation by batch, depth and resolution."""
    words = {
        "batch": "batch, d16 at 256 px",
        "depth": "depth at 256 px, where the width grows with it",
        "resolution": "resolution, d16",
    }
    lines = []
    for kind, row in words.items():
        values = (f"{n}: {median(samples):.1f} s" for n, samples in growing[kind].items())
        lines.append(f"- {row}: {', '.join(values)}")
    return ";\n".join(lines) + "."


def operators(measured: Latest) -> str:
    """Kernel / composed of each operator, lowest and highest over its sizes."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for row in measured["operators"]:
        of = found.setdefault(row["operator"], {})
        of.setdefault((row["set"], row["model"]), []).append(row["ratio"])
    columns = sorted({column for of in found.values() for column in of}, reverse=True)
    body = []
    for operator, of in found.items():
        ranges = [(min(of[c]), max(of[c])) if c in of else None for c in columns]
        body.append([operator, *(f"{r[0]:.2f} to {r[1]:.2f}" if r else "-" for r in ranges)])
    heads = [f"{NAMES[name]}, {model}" for name, model in columns]
    return table(["kernel / composed", *heads], body)


def data_growth(growing: Latest) -> str:
    """What a training costs by the number of its images."""
    rows: dict[str, tuple[str, float, int]] = {  # key, unit of a number, digits
        "list the folder, s": ("scan", 1, 1),
        "the same when no folder has changed, s": ("scan_again", 1, 1),
        "note its files for a resumption, s": ("note", 1, 2),
        "memory of its lists, MB": ("bytes", 1e6, 0),
        "at its highest, that of a resumption": ("peak_bytes", 1e6, 0),
        "which images a step takes, us": ("step", 1e-6, 0),
        "find the class of an image among its files, us": ("class", 1e-6, 1),
        "read an image, us": ("image", 1e-6, 0),
        "the same of one class (`evaluate`), us": ("image_one_class", 1e-6, 0),
        "open the token cache, s": ("cache_open", 1, 2),
        "check a shard at its first touch, ms": ("cache_check", 1e-3, 0),
        "read an image's tokens, us": ("cache_image", 1e-6, 0),
        "compare the images at a resumption, s": ("resume", 1, 2),
        "go on with `metrics.jsonl`, s": ("metrics", 1, 2),
        "first step from images, by the clock, s": ("first_step_pixels", 1, 1),
        "first step from tokens, by the clock, s": ("first_step_tokens", 1, 1),
    }
    body = []
    for row, (key, unit, digits) in rows.items():
        values = (of[key] / unit for of in growing.values())
        body.append([row, *(f"{value:.{digits}f}" for value in values)])
    return table(["images", *(f"{int(count):,}" for count in growing)], body)


def loading(read: list[Latest]) -> str:
    """Photographs a second of each reader, by cores."""
    words = {
        "Pillow": "plain Pillow, one thread",
        "processes": "plain Pillow, a process for each core",
        "loader": "this project's loader",
        "MindSpore": "MindSpore's pipeline, bicubic",
    }
    body = []
    for of in sorted(read, key=lambda of: (of["cores"], list(words).index(of["reader"]))):
        waits = f"{100 * of['waiting']:.1f} %" if "waiting" in of else "-"
        rates = f"{of['images_per_second']:.0f}", f"{of['processor_ms']:.1f}"
        body.append([str(of["cores"]), words[of["reader"]], *rates, waits])
    return table(["cores", "reader", "photographs/s", "processor ms each", "a step waits"], body)


TABLES: tuple[Callable[[Latest], str], ...] = (speed, ratios, parts, first, differences)


def with_tables(
    text: str,
    latest: Latest,
    growing: Latest,
    measured: Latest,
    of_data: Latest,
    read: list[Latest],
) -> str:
    """A page with its tables as the records have them."""
    texts = {of.__name__: of(latest) for of in TABLES}
    texts |= {"growth": growth(growing), "operators": operators(measured)}
    texts |= {"data_growth": data_growth(of_data), "loading": loading(read)}
    pattern = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}\n{texts[m[2]]}\n\n{m[3]}", text)


def records() -> tuple[Any, ...]:
    names = ("latest", "growth", "operators", "growth-data", "loading")
    return tuple(json.loads((ROOT / "benchmarks" / f"{name}.json").read_text()) for name in names)


def main() -> None:
    for page in PAGES:
        page.write_text(with_tables(page.read_text(), *records()))


if __name__ == "__main__":
    main()
