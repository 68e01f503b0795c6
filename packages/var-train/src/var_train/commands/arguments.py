"""The command line of a run: how sizes are written (``4``, or ``3x4``), and a short help."""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)
from var_tokenizer import Scale
from var_tokenizer.common.command import read_settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

_GLUE = "\0"  # stands for a space, so that a setting and its value stay on one line

sizes = ConstructorRegistry()
"""For ``tyro.cli(..., registry=sizes)``."""


def format_size(size: Scale) -> str:
    """4 as ``4``, (3, 4) as ``3x4``."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def parse_size(text: str) -> Scale:
    """The inverse of ``format_size``; raises ValueError for anything else."""
    match [int(number) for number in text.split("x")]:
        case [side]:
            return side
        case [rows, columns]:
            return rows, columns
    raise ValueError(f"{text!r} is not a size; expected 4 or 3x4, say")


@sizes.primitive_rule
def _size_rule(
    info: PrimitiveTypeInfo,
) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
    if info.type not in (Scale, Scale | None):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|ROWSxCOLUMNS",
        instance_from_str=lambda words: parse_size(words[0]),
        is_instance=lambda value: value is None or isinstance(value, int | tuple),
        str_from_instance=lambda value: [str(value) if value is None else format_size(value)],
    )


def parse(default: Config, prog: str) -> Config:
    """``default``, a dataclass with groups of settings (dataclasses), changed by the command line.

    ``--help`` explains the fields outside of groups, and lists the others with their defaults;
    ``--help-all`` explains every field.
    """
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        _help(default, prog)
    words = ["--help" if word == "--help-all" else word for word in words]
    return read_settings(type(default), default=default, prog=prog, registry=sizes, args=words)


def _help(default: Config, prog: str) -> None:
    """Writes the short help and exits with 0."""
    kind = type(default)
    groups = [f for f in fields(kind) if is_dataclass(getattr(default, f.name))]
    suppress: Any = tyro.conf.Suppress
    hidden = [(f.name, suppress[f.type], f) for f in groups]
    shown = make_dataclass(kind.__name__, hidden, bases=(kind,), frozen=True)
    about = textwrap.dedent(f"    {kind.__doc__}").strip()
    try:
        values = {f.name: getattr(default, f.name) for f in fields(kind)}
        tyro.cli(
            shown,
            default=shown(**values),
            prog=prog,
            description=about,
            registry=sizes,
            args=["--help"],
        )
    except SystemExit:
        lines = ["Settings and their defaults; --help-all explains each of them:", ""]
        for group in groups:
            lines += _settings(getattr(default, group.name), _option(group.name))
        sys.stdout.write("\n".join(lines) + "\n")
        raise


def _settings(group: "DataclassInstance", prefix: str) -> Iterator[str]:
    """What a group is, and its settings, ``--loop.keep 3 .validations 5``; then its subgroups."""
    names = {f.name: getattr(group, f.name) for f in fields(group)}
    inner: dict[str, Any] = {name: value for name, value in names.items() if is_dataclass(value)}
    words = [f".{_written(n, value)}" for n, value in names.items() if n not in inner]
    text = f"  --{prefix}{'  '.join(word.replace(' ', _GLUE) for word in words)}"
    lines = textwrap.wrap(text, 80, subsequent_indent="      ", break_on_hyphens=False)
    yield (type(group).__doc__ or "").partition("\n")[0]
    yield "\n".join(lines).replace(_GLUE, " ")
    for name, value in inner.items():
        yield from _settings(value, f"{prefix}.{_option(name)}")


def _option(field: str) -> str:
    return field.replace("_", "-")


def _written(field: str, value: object) -> str:
    """An option and its value as a user would type them."""
    option = _option(field)
    if isinstance(value, bool):
        return option if value else f"no-{option}"
    if isinstance(value, tuple):
        sizes_ = [format_size(v) if isinstance(v, tuple) else str(v) for v in value]
        return f"{option} {' '.join(sizes_)}".strip()
    return f"{option} {value}"
