"""No option does nothing: every field of every configuration is read by some line.

A field's name alone does not tell, since other classes have fields of that name: mypy does.
"""

import ast
import re
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[1]
# the command takes it from the words of the command line, before there is a configuration
READ_OTHERWISE = {("RunConfig", "preset")}
# no settings, though they are validated: one is read through a protocol, one compared as a whole
DATA = {"ImageSet", "CacheIndex"}


class Configurations:
    """The dataclasses that validate what they are built from, and those of modules with a command.

    fields: (class, field) of all. reads: (file, line, class, field) of where they are read, but
    in their declarations and in validation.
    """

    def __init__(self, folder: Path, sources: list[Path]) -> None:
        self.fields: set[tuple[str, str]] = set()
        self._bases: dict[str, list[str]] = {}
        not_read = set()
        for path in (path for source in sources for path in source.rglob("*.py")):
            tree = ast.parse(path.read_text())
            of_command = any(getattr(node, "name", "") == "main" for node in tree.body)
            for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
                self._bases[node.name] = [ast.unparse(base) for base in node.bases]
                methods = {m.name: m for m in node.body if isinstance(m, ast.FunctionDef)}
                is_dataclass = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
                if is_dataclass and (of_command or "__post_init__" in methods):
                    declared = [item for item in node.body if isinstance(item, ast.AnnAssign)]
                    self.fields |= {(node.name, item.target.id) for item in declared}
                    for own in (*declared, *(methods[name] for name in validating(methods))):
                        lines = range(own.lineno, own.end_lineno + 1)
                        not_read |= {(str(path), line) for line in lines}
        text = (ROOT / "mypy.ini").read_text().replace("$MYPY_CONFIG_FILE_DIR", str(ROOT))
        plugin = f"[mypy]\nplugins = {Path(__file__).with_name('field_reads.py')}"
        config = folder / "mypy.ini"
        config.write_text(text.replace("[mypy]", plugin, 1))
        options = ("--config-file", str(config), "--cache-dir=/dev/null", "--no-incremental")
        _, errors, _ = api.run([*options, *map(str, sources)])
        assert not errors, errors
        found = (line.split(":") for line in (folder / "reads").read_text().splitlines())
        self.reads = {
            (path, int(line), owner, name)
            for path, line, subclass, name in found
            for owner in self._owners(subclass, name)
            if (path, int(line)) not in not_read
        }

    def _owners(self, of: str, name: str) -> list[str]:
        """The class that declares a field: ``of`` or the nearest of its bases."""
        if name == "*" or (of, name) in self.fields:
            return [of]
        return [owner for base in self._bases.get(of, ()) for owner in self._owners(base, name)][:1]

    def unread(self) -> set[tuple[str, str]]:
        """(class, field) of what nothing reads."""
        read = {(owner, name) for _, _, owner, name in self.reads}
        return {f for f in self.fields if f not in read and (f[0], "*") not in read}


def validating(methods: dict[str, ast.FunctionDef]) -> set[str]:
    """Methods that only check, and private ones that are called from there alone."""
    calls = {name: re.findall(r"\bself\.(\w+)", ast.unparse(methods[name])) for name in methods}
    found = {n for n in methods if n == "__post_init__" or n.strip("_").startswith("check")}
    for _ in methods:
        for name in methods:
            callers = {caller for caller in calls if name in calls[caller]}
            if name.startswith("_") and callers and callers <= found:
                found.add(name)
    return found


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Configurations:
    return Configurations(tmp_path_factory.mktemp("mypy"), [*ROOT.glob("packages/*/src")])


def test_every_field_of_every_configuration_is_read_outside_of_its_own_validation(ours):
    assert len(ours.fields) > 100
    classes = {name for name, _ in ours.fields}
    assert {"RunConfig", "AdversaryConfig", "TransformerConfig", "Sampler"} <= classes
    assert {"ConvertConfig", "ServeConfig"} <= classes
    assert not {found for found in ours.unread() if found[0] not in DATA} - READ_OTHERWISE


@pytest.mark.parametrize(
    ("field", "read"),
    [
        (("AdversaryConfig", "augment"), "config.adversary.augment"),
        (("TransformerStageConfig", "validation_images"), "config.validation_images"),
    ],
)
def test_a_field_is_read_at_its_own_reader_alone(ours, field, read):
    """Although classes beside it have fields of the same name, which are read."""
    ((path, line),) = {found[:2] for found in ours.reads if found[2:] == field}
    assert read in Path(path).read_text().splitlines()[line - 1]


EXAMPLE = """
from dataclasses import asdict, dataclass, replace

@dataclass(frozen=True)
class Inner:
    size: int = 1
    unused: int = 2

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        self._is_small()
        print(self.size)

    def _is_small(self) -> bool:
        return self.unused < 9

@dataclass(frozen=True)
class Outer:
    inner: Inner
    size: int = 3
    unused: int = 4

    def __post_init__(self) -> None:
        assert self.unused > 0

class Work:
    def __init__(self, config: "Outer | None") -> None:
        self._config = config

    def run(self, others: list[Outer]) -> int:
        config = replace(self._config)
        def later() -> int:
            return config.{first}
        return later() + [o.{second} for o in others][0]

def g(inner: Inner) -> None:
    print({work}(inner))
"""


@pytest.mark.parametrize(
    ("first", "second", "work", "unread"),
    [
        ("inner.size", "size", "asdict", {("Inner", "unused"), ("Outer", "unused")}),
        ("inner.unused", "size", "asdict", {("Inner", "size"), ("Outer", "unused")}),
        ("size", "unused", "asdict", {("Inner", "size"), ("Inner", "unused"), ("Outer", "inner")}),
        # fields are read where they become arguments, not where they are written
        ("size", "unused", "**asdict", {("Outer", "inner")}),
    ],
)
def test_fields_of_one_name_are_told_apart_by_their_class(tmp_path, first, second, work, unread):
    text = EXAMPLE.replace("{first}", first).replace("{second}", second).replace("{work}", work)
    (tmp_path / "example.py").write_text(text)
    assert Configurations(tmp_path, [tmp_path]).unread() == unread
