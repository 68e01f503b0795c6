"""Reads the graphs that MindSpore saves for the Ascend backend: kernels, traffic, products."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Nodes that start nothing: the graph's own bookkeeping, and new shapes of the same memory.
NO_KERNEL = {"Reshape", "ReshapeExt", "ExpandDims", "Squeeze", "Flatten", "FlattenGrad", "Depend"}
NO_KERNEL |= {"MakeTuple", "MakeList", "TupleGetItem", "ListGetItem", "TupleToTensor", "Return"}
NO_KERNEL |= {"Load", "UpdateState", "partial", "call", "Partial", "Call", "StreamSend"}
NO_KERNEL |= {"StreamRecv", "Send", "Recv"}
# Those that read of their first input what they put out, not all of it.
READ_IN_PART = {"StridedSlice", "Slice", "SliceExt", "Gather", "GatherD", "EmbeddingLookup"}
BYTES = {"Bool": 1, "Int8": 1, "UInt8": 1, "Int16": 2, "Float16": 2, "BFloat16": 2}
BYTES |= {"Int32": 4, "UInt32": 4, "Float32": 4, "Int64": 8, "UInt64": 8, "Float64": 8}
BYTES |= {"Complex64": 8, "Complex128": 16, "Nonex": 0, "None": 0}

_NODE = re.compile(r"\s+%\d+\([^)]*\) = (?:PrimFunc_)?([\w/.-]+)\(")
_DEVICE = re.compile(r"<(\w+?)x(\w+?)(?:\[const vector\])?\{([\d, -]*)\}>")


@dataclass(frozen=True)
class Array:
    """An array as it lies on the device."""

    shape: list[int]
    bytes: int


@dataclass
class Operator:
    """All kernels of one name in a graph. bytes: what they read and write. flops: of products."""

    kernels: int = 0
    bytes: float = 0
    flops: float = 0

    def add(self, other: "Operator") -> None:
        self.kernels += other.kernels
        self.bytes += other.bytes
        self.flops += other.flops


@dataclass
class Graph:
    """What one compiled function launches at each run.

    name: of the function. ids: MindSpore's numbers of its kernel graphs; a function with branches
    has several.
    """

    name: str
    ids: set[int] = field(default_factory=set)
    operators: dict[str, Operator] = field(default_factory=lambda: defaultdict(Operator))

    @property
    def total(self) -> Operator:
        total = Operator()
        for operator in self.operators.values():
            total.add(operator)
        return total


def read_graphs(folder: Path) -> list[Graph]:
    """Every function that was compiled, in order, each named once: ``step``, ``step #2``."""
    order = []
    for path in folder.rglob("*.ir"):  # with several cards, in a folder of the rank
        number = re.search(r"_(\d{4,})\.ir$", path.name)
        if number and path.name.startswith(("graph_build_", "hwopt_before_mindrt")):
            order.append((int(number[1]), path))
    graphs: list[Graph] = []
    seen: Counter[str] = Counter()
    for _, path in sorted(order):
        if path.name.startswith("graph_build_"):
            graphs[-1].ids.add(int(path.name.split("_")[2]))
            for name, operator in _operators(path.read_text(errors="replace")):
                graphs[-1].operators[name].add(operator)
            continue
        # hwopt_before_mindrt_unify_mindir_graph_12_1_NAME_6_0119.ir
        root = re.sub(r"^.*?_graph_(?:\d+_)*", "", path.stem)
        root = re.sub(r"(_\d+)+$", "", root)
        seen[root] += 1
        graphs.append(Graph(root + (f" #{seen[root]}" if seen[root] > 1 else "")))
    return [graph for graph in graphs if graph.ids]


def _operators(text: str) -> Iterator[tuple[str, Operator]]:
    """The kernels of one ``graph_build_*.ir``, one at a time."""
    lines = text.split("\n")
    in_graph = False
    for i, line in enumerate(lines):
        in_graph = in_graph or line.startswith("subgraph @")
        match = _NODE.match(line) if in_graph else None
        if match is None:
            continue
        name = re.sub(r"_\d+$", "", match[1])
        # The next line has the types as Python sees them, where tuples are folded; the one after
        # it those of the device.
        types = lines[i + 2] if i + 2 < len(lines) else ""
        before, _, after = types.rpartition(") -> (")
        # a view computes strides on the host; its launch does nothing (host_kernel_mod.h)
        if name in NO_KERNEL or name.endswith("View") or not after:
            continue
        given, made = _arrays(before), _arrays(after)
        written = sum(a.bytes for a in made)
        read = sum(a.bytes for a in given)
        if name in READ_IN_PART and given:
            read -= max(0, given[0].bytes - written)
        flops = _flops(name, line, given, made) if given and made else 0
        yield name, Operator(1, read + written, flops)


def _arrays(text: str) -> list[Array]:
    found = []
    for kind, _, dimensions in _DEVICE.findall(text):
        shape = [int(d) for d in dimensions.replace(" ", "").split(",") if d]
        found.append(Array(shape, math.prod(shape) * BYTES.get(kind, 4)))
    return found


def _flops(name: str, line: str, given: list[Array], made: list[Array]) -> float:
    shapes, out = [a.shape for a in given], made[0].shape
    if "MatMul" in name and len(shapes) > 1 and len(shapes[0]) > 1 and len(shapes[1]) > 1:
        # (M K)(K N)(M N) = (M K N)^2, whichever is transposed; a batch that one side lacks
        # counts once in the other two
        left, right, product = (math.prod(shape) for shape in (shapes[0], shapes[1], out))
        batch = math.prod(out[:-2])
        right *= max(1, batch // max(1, math.prod(shapes[1][:-2])))
        left *= max(1, batch // max(1, math.prod(shapes[0][:-2])))
        return 2 * math.sqrt(left / batch * (right / batch) * (product / batch)) * batch
    if name in ("Dense", "Linear", "LinearExt") and len(shapes[1]) == 2:
        return 2 * math.prod(shapes[0]) * shapes[1][0]
    if name in ("Conv2D", "Conv2DExt", "Convolution") and len(out) == 4:
        return 2 * math.prod(out) * math.prod(shapes[1][1:])
    if "Attention" in name and len(shapes) > 2:
        query, key = shapes[0], shapes[1]
        call = line.split(" primitive_attrs")[0].rstrip(") ").rsplit("I64(", 3)
        layout = call[2].split(")")[0] if name.startswith("FlashAttentionScore") else ""
        axis = {"1": 2, "2": 0}.get(layout, 1)  # BNSD, SBH; BSH and BSND
        if len(key) > axis:
            return 4 * math.prod(query) * key[axis] * (2.5 if "Grad" in name else 1)
    return 0
