"""Which weights an adapter is for: the settings of LoRA, and the names that patterns match."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from var_tokenizer.common import InputError, check_integer, check_number, quoted

from var_transformer.model.config import TransformerConfig
from var_transformer.model.shapes import transformer_shapes

Shape = tuple[int, int]

_TABLES = ("class_emb", "lvl_embed")


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (arXiv:2106.09685): trains small matrices beside the weights of --init, which stay.

    OUT gets adapter/ in the place of transformer.safetensors then.
    """

    rank: int = 0
    """Rows of the small matrices; 0 trains all weights instead."""
    alpha: float = 16.0
    """ALPHA / RANK multiplies the product of the small matrices."""
    targets: tuple[str, ...] = ("mat_qkv", "proj", "fc1", "fc2")
    """Which affine maps: patterns of their names or of the ends of these, such as fc1, attn.*,
    blocks.1?.*, ada_lin, word_embed, head; '*' for all."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        check_integer("rank", self.rank, 0)
        check_number("alpha", self.alpha, above=0)
        if not self.targets:
            raise InputError("targets is empty; expected patterns of names, such as fc1")

    def check(self, model: TransformerConfig) -> None:
        """Raises InputError for a target that matches nothing, and a rank above that of a map."""
        for name, shape in targeted(model, self.targets).items():
            if self.rank > min(shape):
                raise InputError(
                    f"rank is {self.rank}; expected at most {min(shape)}, that of {name} {shape}"
                )


def linear_shapes(config: TransformerConfig) -> dict[str, Shape]:
    """Name -> (outputs, inputs) of every affine map of a transformer, in order."""
    return dict(_linear_shapes(config))


def _linear_shapes(config: TransformerConfig) -> Iterator[tuple[str, Shape]]:
    for name, shape in transformer_shapes(config):
        module, _, kind = name.rpartition(".")
        if kind == "weight" and len(shape) == 2 and module not in _TABLES:
            yield module, (shape[0], shape[1])


def targeted(config: TransformerConfig, patterns: tuple[str, ...]) -> dict[str, Shape]:
    """Name -> (outputs, inputs) of the affine maps that any of the patterns matches.

    Raises InputError for a pattern that matches none.
    """
    shapes = linear_shapes(config)
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in shapes):
            kinds = dict.fromkeys(_short(name).rpartition(".")[2] for name in shapes)
            raise InputError(
                f"targets holds {quoted(pattern)}, which matches no affine map of the model; "
                f"expected a pattern of names such as blocks.0.attn.proj, or one of "
                f"{', '.join(kinds)}"
            )
    return {
        name: shape for name, shape in shapes.items() if any(_matches(name, p) for p in patterns)
    }


def _short(name: str) -> str:
    """The name without the number that an affine map has behind its SiLU."""
    return name.removesuffix(".1")


def _matches(name: str, pattern: str) -> bool:
    parts = _short(name).split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts))]
    return any(fnmatchcase(text, pattern) for text in (name, *ends))
