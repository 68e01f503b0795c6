"""The table of docs/survival.md, from benchmarks/torture.json, which ``nox -s torture`` records.

python tests/torture/survival_page.py     # writes it between <!-- kills --> and <!-- end -->
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "survival.md"
RECORD = ROOT / "benchmarks" / "torture.json"
SIGNALS = ("SIGKILL", "SIGTERM")
MOMENTS = ("first second", "any moment", "change of a file")
HEADS = ("work", "cases", "kills", *SIGNALS, *MOMENTS, "ends identical")


def rows(record: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each kind of work, and one for all of them."""
    cases = record["cases"]
    for name in dict.fromkeys(case["case"] for case in cases):
        yield _row(name, [case for case in cases if case["case"] == name])
    yield _row("all", cases)


def _row(name: str, cases: list[dict[str, Any]]) -> tuple[str, ...]:
    def count(field: str, key: str) -> int:
        return sum(case[field].get(key, 0) for case in cases)

    signals = [count("signals", key) for key in SIGNALS]
    moments = [count("moments", key) for key in MOMENTS]
    kept = sum(case["failure"] is None for case in cases)
    figures = [len(cases), sum(signals), *signals, *moments]
    return name, *map(str, figures), f"{kept} of {len(cases)}"


def recorded() -> dict[str, Any] | None:
    """The night's record, if there is one."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else None


def table(record: dict[str, Any] | None) -> str:
    """Markdown, after a sentence about the night."""
    if record is None:
        return "No night is recorded yet."
    hours = f"{record['seconds'] / 3600:.1f} hours"
    about = f"One run of {hours}, seed {record['seed']}, on {record['machine']}:"
    rule = ("---", *["---:"] * (len(HEADS) - 1))
    lines = ("| " + " | ".join(cells) + " |" for cells in (HEADS, rule, *rows(record)))
    return "\n".join((about, "", *lines))


def with_table(text: str, record: dict[str, Any] | None) -> str:
    """The page with its table as the record has it."""
    pattern = re.compile(r"(<!-- kills -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}\n{table(record)}\n\n{m[2]}", text)


def main() -> None:
    PAGE.write_text(with_table(PAGE.read_text(), recorded()))


if __name__ == "__main__":
    main()
