"""No option does nothing: every field of every configuration is read by some line."""

from pathlib import Path

import pytest
from field_reads import Sources

PACKAGES = Path(__file__).parents[1] / "packages"
# the command takes it from the words of the command line, before there is a configuration
READ_OTHERWISE = {("RunConfig", "preset")}
DATA = {"ImageSet"}  # no setting, though it is validated; read of the protocol ImageSource


def test_every_field_of_every_configuration_is_read_outside_of_its_own_validation():
    sources = Sources(p.read_text() for p in PACKAGES.glob("*/src/**/*.py"))
    assert len(sources.fields()) > 100
    classes = {name for name, _ in sources.fields()}
    assert {
        "RunConfig",
        "AdversaryConfig",
        "TransformerConfig",
        "Sampler",
        "ConvertConfig",
        "ServeConfig",
    } <= classes
    unread = {found for found in sources.unread() if found[0] not in DATA}
    assert not unread - READ_OTHERWISE


@pytest.mark.parametrize(
    ("read", "field"),
    [
        ("config.adversary.augment", ("AdversaryConfig", "augment")),
        ("config.validation_images", ("TransformerStageConfig", "validation_images")),
    ],
)
def test_a_field_whose_only_reader_is_gone_is_found(read, field):
    """Although classes beside it have fields of the same name, which are read."""
    sources = []
    for path in PACKAGES.glob("*/src/**/*.py"):
        text = path.read_text()
        wanted = (
            "transformer_stage.py" if field[0] == "TransformerStageConfig" else "tokenizer_stage.py"
        )
        sources.append(text.replace(read, "None") if path.name == wanted else text)
    assert field in Sources(sources).unread()


EXAMPLE = """
from dataclasses import dataclass, replace

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
"""


@pytest.mark.parametrize(
    ("first", "second", "unread"),
    [
        ("inner.size", "size", {("Inner", "unused"), ("Outer", "unused")}),
        ("inner.unused", "size", {("Inner", "size"), ("Outer", "unused")}),
        ("size", "unused", {("Inner", "size"), ("Inner", "unused"), ("Outer", "inner")}),
    ],
)
def test_fields_of_one_name_are_told_apart_by_the_class_they_are_read_of(first, second, unread):
    text = EXAMPLE.replace("{first}", first).replace("{second}", second)
    assert Sources([text]).unread() == unread


@pytest.mark.parametrize(
    ("work", "unread"), [("f(**asdict(inner))", set()), ("f(asdict(inner))", {"size", "unused"})]
)
def test_fields_are_read_where_they_become_arguments_not_where_they_are_written(work, unread):
    text = EXAMPLE.split("@dataclass(frozen=True)\nclass Outer")[0]
    text += f"def g(inner: Inner) -> None:\n    {work}\n"
    assert Sources([text]).unread() == {("Inner", name) for name in unread}
