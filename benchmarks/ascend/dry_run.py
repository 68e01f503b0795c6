"""Runs a program as if an Ascend were here; says what it would launch. Nothing is launched.

    python benchmarks/ascend/cann/build.py                   # once for each MindSpore
    python benchmarks/ascend/dry_run.py [--soc S] [--cards N] [--operators] program.py ...

The program calls ``mindspore.set_device("Ascend")`` before it imports what asks for the device, and
names its parts with ``region`` (see region.py). With ``--cards`` it runs as the first of several,
with ``--operators`` with the operators in Ascend C that build_operators.py built.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from region import MARK
from saved_graphs import Graph, Operator, read_graphs

HERE = Path(__file__).resolve().parent
BUILT = Path(".ascend-dry-run")  # where cann/build.py writes
OPERATORS = "home"  # below it, where build_operators.py does: the operators' own place is in there
SOC = "Ascend910B2"
KINDS = {
    "opapi_kernel": "aclnn",  # CANN's operators of today, one call each
    "acl_kernel": "acl",  # compiled by CANN when first met, and again for each new shape
    "host_kernel": "host",  # on the CPU; views, which compute strides alone, are not counted
    "hccl_kernel": "hccl",  # between cards
    "internal_kernel": "internal",  # the wheel's own, hand-written
    "akg_kernel": "fused",  # several operators in one, generated (jit_level O1)
    "rt_kernel": "runtime",
    "custom": "custom",  # ours, in Ascend C
}
NO_LAUNCH = re.compile(r".*(View|Reshape)(Ext)?$")  # the same memory under another shape

log = logging.getLogger("dry run")


class DryRunError(RuntimeError):
    """The program failed; the message ends with the last lines that it wrote."""


@dataclass(frozen=True)
class Region:
    """A part of a program: what ran in it.

    runs: how often each graph ran. eager: operators called outside of graphs, by name, whose
    traffic is not known. kinds: those of each operator's kernels; an operator that no kernel was
    selected for is not among them.
    """

    name: str
    peak_bytes: int
    up_bytes: int
    down_bytes: int
    runs: list[tuple[Graph, int]]
    eager: dict[str, int]
    kinds: dict[str, set[str]]


def run(
    command: Sequence[str],
    soc: str = SOC,
    cards: int = 1,
    built: Path = BUILT,
    operators: bool = False,
) -> list[Region]:
    """Runs a program (its file and arguments) dry; returns its regions.

    Raises DryRunError where it fails, and FileNotFoundError where ``built`` is not built.
    """
    with tempfile.TemporaryDirectory(prefix="dry-run-") as temporary:
        graphs = Path(temporary)
        environment = os.environ | device_environment(built, soc, cards) | log_environment(graphs)
        if operators:
            environment["HOME"] = str(built.resolve() / OPERATORS)
        child = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            cwd=temporary,  # MindSpore leaves folders where a program runs
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert child.stderr is not None
        events, said = _events(child.stderr)
        if code := child.wait():
            raise DryRunError(f"{command[0]} ended with {code}:\n{''.join(said[-40:])}")
        return _regions(events, read_graphs(graphs))


def device_environment(built: Path, soc: str, cards: int) -> dict[str, str]:
    """What lets MindSpore's plug-in start: the folder that stands for CANN, and the simulation.

    Raises FileNotFoundError where the folder is not built.
    """
    if not (built / "built.json").exists():
        raise FileNotFoundError(f"{built} is not built: python {HERE / 'cann' / 'build.py'}")
    cann = built.resolve() / "cann" / "latest"
    # looked for by this name alone: without it MindSpore warns of missing operators
    tbe = cann / "opp" / "built-in" / "op_impl" / "ai_core" / "tbe"
    paths = {
        "LD_LIBRARY_PATH": (cann / "lib64",),
        "PYTHONPATH": (HERE, built.resolve() / "python", tbe),
    }
    joined = {
        name: ":".join([*map(str, first), *filter(None, [os.environ.get(name)])])
        for name, first in paths.items()
    }
    return joined | {
        "MS_SIMULATION_LEVEL": "1",  # compile and plan, launch nothing
        "DRY_RUN_SOC": soc,
        "DRY_RUN_CARDS": str(cards),
        "RANK_ID": "0",
        "RANK_SIZE": str(cards),
        "ASCEND_HOME_PATH": str(cann),
        "ASCEND_TOOLKIT_HOME": str(cann),
        "ASCEND_OPP_PATH": str(cann / "opp"),
        "LD_PRELOAD": str(built.resolve() / "libascend_dry_run_preload.so"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def log_environment(graphs: Path) -> dict[str, str]:
    """What makes MindSpore say which kernels it selects and what it runs, and save its graphs."""
    return {
        "GLOG_v": "3",
        "MS_SUBMODULE_LOG_v": "{DEVICE:1,RUNTIME_FRAMEWORK:1,PYNATIVE:0}",
        "MS_DEV_SAVE_GRAPHS": "1",
        "MS_DEV_SAVE_GRAPHS_PATH": str(graphs),
        "MS_DEV_DUMP_IR_PASSES": "graph_build,before_mindrt",  # of some seventy
        "MS_DEV_DUMP_IR_FORMAT": "2",  # with the types on the device
    }


# What a program did, in order: ("mark", its JSON), ("kernel", name, kind), ("graph", id) or
# ("eager", name).
Event = tuple[str, ...]
_LOGGED = (
    ("kernel", re.compile(r"\] kernel opname:(.+?), kernel type:(\w+)")),
    ("kernel", re.compile(r"\] (Custom_\w+) select (custom) kernel")),  # the type above is empty
    ("graph", re.compile(r"\] Start to run graph, .* graph: kernel_graph_(\d+)")),
    ("eager", re.compile(r"\] Run Pyboost(\w+) start")),
    ("eager", re.compile(r"\] Start launch kernel Default/(\w+)-op\d+ kernel type")),
)
_STATISTICS = re.compile(r"(Device MOC|MindSpore (Used )?memory|(Used|Actual) peak memory|\n)")
_SAYS = re.compile(r"\[[A-Z]+\] |Traceback")
_LOG_LINE = re.compile(r"\[(DEBUG|INFO|WARNING)\] (DEVICE|RUNTIME_FRAMEWORK|PYNATIVE)\(")


def _events(lines: Iterable[str]) -> tuple[list[Event], list[str]]:
    """What MindSpore's log and the marks say, and the lines that are neither."""
    events: list[Event] = []
    said: list[str] = []
    dropping = False  # the rest of a message of several lines
    for line in lines:
        if MARK in line:  # threads of MindSpore may write into the same line
            text = line[line.index(MARK) + len(MARK) :]
            events.append(("mark", json.dumps(json.JSONDecoder().raw_decode(text)[0])))
            dropping = False
            continue
        for event, pattern in _LOGGED:
            if found := pattern.search(line):
                events.append((event, *found.groups()))
        logged = _LOG_LINE.match(line)
        dropping = bool(logged) or (dropping and not _SAYS.match(line))
        if not dropping and not _STATISTICS.match(line):
            said.append(line)
            sys.stderr.write(line)
    return events, said


def _regions(events: list[Event], graphs: list[Graph]) -> list[Region]:
    kinds: dict[str, set[str]] = {}
    for event in events:
        if event[0] == "kernel":
            kinds.setdefault(event[1], set()).add(KINDS.get(event[2], event[2]))
    by_id = {number: graph for graph in graphs for number in graph.ids}
    regions: list[Region] = []
    runs: Counter[str] = Counter()
    eager: Counter[str] = Counter()
    for event in events:
        if event[0] == "graph":
            runs[by_id[int(event[1])].name] += 1
        elif event[0] == "eager" and not NO_LAUNCH.match(event[1]):
            eager[event[1]] += 1
        elif event[0] == "mark":
            mark = json.loads(event[1])
            if mark.pop("event") == "end":
                ran = [(graph, runs[graph.name]) for graph in graphs if runs[graph.name]]
                regions.append(Region(**mark, runs=ran, eager=dict(eager), kinds=kinds))
            runs.clear()
            eager.clear()
    return regions


def table(region: Region, top: int) -> str:
    """For people: the graphs of a region, and the operators of each by their traffic."""
    lines = [
        f"== {region.name}: peak {region.peak_bytes / 2**30:.2f} GiB, "
        f"{region.up_bytes / 1e6:.2f} MB up, {region.down_bytes / 1e6:.2f} MB down"
    ]
    for graph, runs in region.runs:
        lines.append(f"-- {graph.name}, {runs} run(s): {_row(graph.total)}")
        rows = sorted(graph.operators.items(), key=lambda item: -item[1].bytes)
        for name, operator in rows[:top]:
            kind = "/".join(sorted(region.kinds.get(name, "?")))
            lines.append(f"   {name[:40]:40s} {kind:8s} {_row(operator)}")
        if len(rows) > top:
            lines.append(f"   ... and {len(rows) - top} more")
    if region.eager:
        each = ", ".join(f"{name} {n}" for name, n in sorted(region.eager.items()))
        lines.append(f"-- outside of graphs: {each}")
    return "\n".join(lines)


def _row(operator: Operator) -> str:
    return (
        f"{operator.kernels:6d} kernels {operator.bytes / 1e9:9.3f} GB "
        f"{operator.flops / 1e12:8.3f} TFLOP"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--soc", default=SOC)
    parser.add_argument("--cards", type=int, default=1)
    parser.add_argument("--built", type=Path, default=BUILT)
    parser.add_argument("--operators", action="store_true", help="with those in Ascend C")
    parser.add_argument("--top", type=int, default=20, help="operators shown of each graph")
    parser.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.program:
        parser.error("no program")
    program = [str(Path(options.program[0]).resolve()), *options.program[1:]]
    for region in run(program, options.soc, options.cards, options.built, options.operators):
        log.info("%s", table(region, options.top))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
