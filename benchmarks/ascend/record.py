"""The paths of the packages, run dry on an Ascend that is not there; writes benchmarks/ascend.json.

    python benchmarks/ascend/record.py [CASE ...]            # all; about an hour
    python benchmarks/ascend/record.py --check [CASE ...]    # a few; ends with 1 where worse

``nox -s ascend`` builds what it needs first. A case takes minutes, one or two cores and about 4 GB.
A case that does not compile is named, and ends all with 1.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ascend_page
from dry_run import BUILT, DryRunError, Region, run, table
from paths import CASES, SMALL, Case

HERE = Path(__file__).resolve().parent
RECORD = HERE.parent / "ascend.json"
SLACK = 0.005  # of memory and traffic, relative; counts have none
OPTIMIZER = "update"  # functions of a training step whose names begin so
INPUTS = "TeacherInputs"  # computed before a step: a case of its own

log = logging.getLogger("dry run")


@dataclass(frozen=True)
class Figures:
    """What a case takes each time but the first.

    kernels, traffic_gb: forward and backward, or all that the case does. optimizer_kernels: of the
    update. transfers_mb: between host and device, both ways. acl_kernels, host_kernels,
    without_kernel: of all of them, those of the old kind, those on the host, and those that
    MindSpore found no kernel for. by_name: kernels of each operator, grouped by their kind.
    """

    peak_gib: float
    kernels: int
    optimizer_kernels: int
    traffic_gb: float
    transfers_mb: float
    acl_kernels: int
    host_kernels: int
    without_kernel: int
    by_name: "ByKind"
    optimizer_by_name: "ByKind"


ByKind = dict[str, dict[str, int]]


def figures(region: Region) -> Figures:
    main, optimizer = Counter(region.eager), Counter[str]()
    traffic = 0.0
    for graph, runs in region.runs:
        if INPUTS in graph.name and len(region.runs) > 1:
            continue
        into = optimizer if graph.name.startswith(OPTIMIZER) else main
        into.update({name: runs * op.kernels for name, op in graph.operators.items()})
        traffic += runs * graph.total.bytes if into is main else 0.0

    groups = [_by_kind(region, counts) for counts in (main, optimizer)]

    def of_kind(kind: str) -> int:
        return sum(sum(group.get(kind, {}).values()) for group in groups)

    return Figures(
        peak_gib=region.peak_bytes / 2**30,
        kernels=main.total(),
        optimizer_kernels=optimizer.total(),
        traffic_gb=traffic / 1e9,
        transfers_mb=(region.up_bytes + region.down_bytes) / 1e6,
        acl_kernels=of_kind("acl"),
        host_kernels=of_kind("host"),
        without_kernel=of_kind("?"),
        by_name=groups[0],
        optimizer_by_name=groups[1],
    )


def _by_kind(region: Region, counts: Counter[str]) -> ByKind:
    found: ByKind = {}
    for name, count in counts.items():
        # operators called outside of graphs are aclnn's but for those that are logged otherwise
        kinds = region.kinds.get(name, {"aclnn" if name in region.eager else "?"})
        # the worst, where an operator has several
        kind = next((k for k in ("?", "host", "acl") if k in kinds), min(kinds))
        found.setdefault(kind, {})[name] = count
    return found


def on_the_line(first: Any, at: int, second: Any, then: int, to: int) -> Any:
    """What lies on the line through two records at two depths, at a third.

    Exact where a model is so many equal blocks and a rest: counts and traffic are. The peak of
    memory is, where it lies at the same place.
    """
    if isinstance(first, dict):
        found = {}
        for name in dict.fromkeys((*first, *second)):
            a, b = first.get(name), second.get(name)
            empty: Any = {} if isinstance(a or b, dict) else 0
            a, b = (empty if value is None else value for value in (a, b))
            found[name] = on_the_line(a, at, b, then, to)
        return found
    value = first + (second - first) * (to - at) / (then - at)
    return round(value) if isinstance(first, int) and isinstance(second, int) else value


def measure(case: Case, built: Path) -> dict[str, Any]:
    """The case's figures as the record has them."""
    found = []
    for depth in case.depths or (case.depth,):
        program = (str(HERE / "programs.py"), case.name, str(depth))
        last = run(program, cards=case.cards, built=built, operators=case.operators)[-1]
        log.debug("depth %d\n%s", depth, table(last, 12))
        found.append(asdict(figures(last)))
    if case.depths is not None:
        record = on_the_line(found[0], case.depths[0], found[1], case.depths[1], case.depth)
    else:
        record = found[0]
    for name in ("by_name", "optimizer_by_name"):
        record[name] = {kind: _sorted(of) for kind, of in sorted(record[name].items())}
    return {n: round(v, 3) if isinstance(v, float) else v for n, v in record.items()}


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    """The most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def worse(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The figures of a case that grew, and the kernels that are new or more, each in words."""
    found = []
    for name, value in now.items():
        if isinstance(value, dict):
            found += _more_kernels(name, before[name], value)
            continue
        most = before[name] * (1 + SLACK) if isinstance(value, float) else before[name]
        if value > most:
            found.append(f"{name} is {value}; expected at most {before[name]}, as recorded")
    return found


def _more_kernels(name: str, before: ByKind, now: ByKind) -> list[str]:
    """A total may hide that one operator became two, or an old kind took the place of a new."""
    known = {kind: before.get(kind, {}) for kind in now}
    return [
        f"{name} has {count} {kind} kernels {operator}; expected at most "
        f"{known[kind].get(operator, 0)}, as recorded"
        for kind, of_kind in now.items()
        for operator, count in of_kind.items()
        if count > known[kind].get(operator, 0)
    ]


def _save(record: dict[str, Any]) -> None:
    ordered = {name: record[name] for name in CASES if name in record}
    temporary = RECORD.with_suffix(".json.new")
    temporary.write_text(json.dumps(ordered, indent=1) + "\n")
    temporary.replace(RECORD)


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="compare with the record, write none")
    parser.add_argument("--built", type=Path, default=BUILT, help="what cann/build.py wrote")
    parser.add_argument("--verbose", action="store_true", help="log every graph and its operators")
    parser.add_argument("case", nargs="*", help=f"of {', '.join(CASES)}")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.case if name not in CASES]:
        parser.error(f"unknown case {unknown[0]}; expected one of {', '.join(CASES)}")
    if options.verbose:
        log.setLevel(logging.DEBUG)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    failed = False
    for name in options.case or (SMALL if options.check else CASES):
        try:
            now = measure(CASES[name], options.built)
        except DryRunError as error:  # an operator without a kernel, say
            failed = True
            log.error("%s: %s", name, error)
            continue
        log.info("%s: %s", name, {n: v for n, v in now.items() if not isinstance(v, dict)})
        if not options.check:
            record[name] = now
            _save(record)
            continue
        for sentence in worse(record[name], now):
            failed = True
            log.error("%s: %s", name, sentence)
    if not options.check:
        ascend_page.main()
    return int(failed)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
