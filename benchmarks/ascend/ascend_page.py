"""The tables of docs/ascend.md, from ``benchmarks/ascend.json``.

python benchmarks/ascend/ascend_page.py     # writes them between <!-- NAME --> and <!-- end -->
"""

import json
import re
from pathlib import Path
from typing import Any

from paths import CASES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "ascend.md"
HEADS = (
    *("case", "peak, GiB", "kernels", "update", "traffic, GB", "transfers, MB"),
    *("acl", "host", "without"),
)
SHOWN = ("train-d16-b96-float16", "generate-d16-b8-float16")  # by operator
Record = dict[str, dict[str, Any]]


def cases(record: Record) -> str:
    """A row a case; then the cases that were not run yet."""
    body = []
    for name, of in record.items():
        integers = ("kernels", "optimizer_kernels", "acl_kernels", "host_kernels", "without_kernel")
        kernels, optimizer, acl, host, without = (f"{of[field]:,}" for field in integers)
        sizes = (f"{of[field]:,.1f}" for field in ("peak_gib", "traffic_gb", "transfers_mb"))
        peak, traffic, transfers = sizes
        body.append([f"`{name}`", peak, kernels, optimizer, traffic, transfers, acl, host, without])
    missing = ", ".join(f"`{name}`" for name in CASES if name not in record)
    return _table(HEADS, body) + (f"\n\nNot recorded yet: {missing}." if missing else "")


def operators(record: Record) -> str:
    """The kernels of a training step and of a generation by kind and name."""
    lines = []
    for name in filter(record.get, SHOWN):
        for kind, of in record[name]["by_name"].items():
            each = ", ".join(f"{operator} {count:,}" for operator, count in of.items())
            lines.append(f"- `{name}`, {kind}: {each}.")
    return "\n".join(lines)


def _table(heads: tuple[str, ...], body: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *body))


def with_tables(text: str, record: Record) -> str:
    """The page with its tables as the record has them."""
    texts = {of.__name__: of(record) for of in (cases, operators)}
    pattern = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}\n{texts[m[2]]}\n\n{m[3]}", text)


def main() -> None:
    record = json.loads((ROOT / "benchmarks" / "ascend.json").read_text())
    PAGE.write_text(with_tables(PAGE.read_text(), record))


if __name__ == "__main__":
    main()
