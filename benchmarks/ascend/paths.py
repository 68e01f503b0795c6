"""The paths through the packages that run dry: one case each, by name.

d16 is at 256 px, d36-s at 512 px. Blocks repeat, so two small depths are compiled, and what all
blocks take follows by difference. Depths 2 and 3 rather than 1 and 2 where gradients are computed:
sums over blocks (AddN) begin at the second.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Case:
    """program: a function of programs.py; options: its arguments.

    depths: those that are compiled, None where the model is compiled as it is. depth: that of the
    model. cards: simulated ones; this is the first of them, and a batch is that of each.
    operators: with those in Ascend C.
    """

    name: str
    program: str
    options: dict[str, Any] = field(default_factory=dict)
    depths: tuple[int, int] | None = None
    depth: int = 0
    cards: int = 1
    operators: bool = False


DEPTHS = {"d16": 16, "d36-s": 36}


def _train(
    name: str,
    batch: int,
    dtype: str,
    more: str = "",
    cards: int = 1,
    jit_level: str = "O0",
    operators: bool = False,
    **stage: Any,
) -> Case:
    options = {"preset": name, "batch": batch, "dtype": dtype, "jit_level": jit_level}
    options["stage"] = stage
    full = f"train-{name}-b{batch}-{dtype}{more}"
    return Case(full, "train_transformer", options, (2, 3), DEPTHS[name], cards, operators)


def _draw(program: str, name: str, batch: int, dtype: str, operators: bool = False) -> Case:
    options = {"preset": name, "batch": batch, "dtype": dtype}
    full = f"{program}-{name}-b{batch}-{dtype}" + "-operators" * operators
    return Case(full, program, options, (1, 2), DEPTHS[name], operators=operators)


def _cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield _train("d16", 96, dtype)
    yield _train("d16", 96, "float16", "-O1", jit_level="O1")
    yield _train("d16", 96, "float16", "-operators", operators=True)
    yield _train("d16", 96, "float16", "-recompute", recompute=True)
    yield _train("d16", 192, "float16", "-accumulation2", accumulation=2)
    yield _train("d16", 96, "float16", "-ema", ema=0.9999)
    yield _train("d16", 96, "float16", "-cards8", cards=8)
    yield _train("d16", 96, "float16", "-cards8-sharded", cards=8, shard_optimizer=True)
    yield _train("d36-s", 8, "float16")
    for dtype in DTYPES:
        yield _draw("generate", "d16", 8, dtype)
    yield _draw("generate", "d16", 8, "float16", operators=True)
    yield _draw("stream", "d16", 8, "float16")
    yield _draw("edit", "d16", 8, "float16")
    yield _draw("generate", "d36-s", 4, "float16")
    for program in ("encode", "decode"):
        yield Case(f"{program}-b8", program, {"batch": 8, "size": 256})
        yield Case(f"{program}-512px-b4", program, {"batch": 4, "size": 512})
    yield Case("teacher-inputs-b96", "teacher_inputs", {"batch": 96})
    yield Case("train-tokenizer-b8", "train_tokenizer", {"batch": 8, "weight": 0.0})
    yield Case("train-tokenizer-b8-adversarial", "train_tokenizer", {"batch": 8, "weight": 0.5})


CASES = {case.name: case for case in _cases()}

SMALL = (
    *("train-d16-b96-float16", "train-d16-b96-float16-recompute", "train-d16-b96-float16-cards8"),
    *("generate-d16-b8-float16", "generate-d16-b8-float16-operators", "encode-b8", "decode-b8"),
)
"""Those that CI measures again."""
