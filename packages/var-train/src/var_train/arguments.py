"""How sizes are written on a command line: ``4``, or ``3x4`` for rows and columns."""

from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)
from var_tokenizer import Scale

sizes = ConstructorRegistry()
"""For ``tyro.cli(..., registry=sizes)``."""


def format_size(size: Scale) -> str:
    """4 as ``4``, (3, 4) as ``3x4``."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def parse_size(text: str) -> Scale:
    """The inverse of ``format_size``; raises ValueError for anything else."""
    numbers = tuple(int(n) for n in text.split("x"))
    if len(numbers) not in (1, 2):
        raise ValueError(f"{text!r} is no size; expected 4 or 3x4, say")
    return numbers[0] if len(numbers) == 1 else numbers


@sizes.primitive_rule
def _(
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
