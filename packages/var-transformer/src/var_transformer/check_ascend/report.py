"""The findings as JSON, and as tables for a README."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from var_tokenizer.common import replacing

from var_transformer.check_ascend.checks import Finding
from var_transformer.check_ascend.measurements import Timing


@dataclasses.dataclass(frozen=True)
class Report:
    """where: device, versions, preset and counts. findings: of checks; the rest are times."""

    where: dict[str, str | int]
    findings: Sequence[Finding]
    calls: Sequence[Timing]
    steps: Sequence[Timing]
    images: Sequence[Timing]


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Writes check_ascend.json and check_ascend.md into the folder; returns their paths."""
    paths = folder / "check_ascend.json", folder / "check_ascend.md"
    text = json.dumps(_finite(dataclasses.asdict(report)), indent=1) + "\n"
    for path, content in zip(paths, (text, tables(report)), strict=True):
        with replacing(path) as temporary:
            temporary.write_text(content, "utf-8")
    return paths


def _finite(value: Any) -> Any:  # noqa: ANN401 (a value of JSON)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if value == float("inf") else value  # JSON has no infinity


def tables(report: Report) -> str:
    """Markdown."""
    about = ", ".join(f"{key} {value}" for key, value in report.where.items())
    parts = [
        about,
        _table(
            ("check", "type", "error", "allowed", "finding"),
            [
                (f.name, f.dtype, _number(f.error), _number(f.allowed), f.fault or "as defined")
                for f in report.findings
            ],
        ),
    ]
    for title, timings in (
        ("call", report.calls),
        ("loss and gradients of a batch", report.steps),
        ("generation", report.images),
    ):
        heads = (title, "type", "forward, ms", "with gradient, ms", "peak so far, GiB", "failure")
        rows = [
            (t.name, t.dtype, *map(_number, (t.forward_ms, t.gradient_ms, t.peak_gib)), t.failure)
            for t in timings
        ]
        parts.append(_table(heads, rows))
    return "\n\n".join(parts) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (heads, ["---"] * len(heads), *rows)
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)
