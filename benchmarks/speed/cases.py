"""The operators that have a C++ kernel, at the sizes of the digits and of d16 (256 px).

A case is one operator at one size. Its cell is built twice: with kernels, and as without a
compiler, composed of MindSpore's operators.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from var_tokenizer import ScaleSchedule, TokenizerConfig
from var_tokenizer import operators as of_tokenizer
from var_tokenizer.common import KernelLibrary
from var_train import AdamW, AdamWConfig, RunConfig
from var_transformer import TransformerConfig
from var_transformer.attention import build
from var_transformer.model import operators as of_transformer

Shape = tuple[int, ...]
Pass = Callable[..., Any]


@contextmanager
def without_kernels() -> Iterator[None]:
    """Cells built meanwhile are composed, as where there is no compiler."""
    with patch.object(KernelLibrary, "if_usable", lambda library: None):
        yield


@dataclass(frozen=True)
class Case:
    """One operator at one size of a model ("digits" or "d16").

    passes: builds what is measured, by name ("forward", "backward"): functions of ``tensors()``
    and, where it has a gradient, of the gradient of its result.
    """

    model: str
    operator: str
    size: str
    shapes: tuple[Shape, ...]
    passes: Callable[[], dict[str, Pass]]

    @property
    def name(self) -> str:
        return f"{self.model} {self.operator} {self.size}"

    def tensors(self) -> list[Tensor]:
        """Standard normal, divided by the root of the last axis, where that is a weight's."""
        rng = np.random.default_rng(0)
        return [Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in self.shapes]


def _of_cell(make: Callable[[], Pass], gradient: bool = True) -> dict[str, Pass]:
    cell = make()

    @ms.jit
    def forward(*tensors: Tensor) -> Any:
        return cell(*tensors)

    if not gradient:
        return {"forward": forward}
    gradients = ops.GradOperation(get_all=True, sens_param=True)(cell)

    @ms.jit
    def backward(*tensors: Tensor) -> Any:
        return gradients(*tensors)

    return {"forward": forward, "backward": backward}


def _convolutions(model: str, config: TokenizerConfig, batch: int) -> Iterator[Case]:
    """Each that the encoder and the decoder call, once."""
    widths = [config.channels * m for m in config.channel_multipliers]
    sides = [config.image_size[0] >> i for i in range(len(widths))]
    z, top, small = config.latent_channels, widths[-1], sides[-1]
    seen: dict[tuple[Any, ...], None] = {}  # kernel, in, out, side, stride, upsampled, plus

    def add(
        k: int, c: int, o: int, y: int, stride: int = 1, up: bool = False, plus: bool = False
    ) -> None:
        seen[k, c, o, y, stride, up, plus] = None

    add(3, 3, widths[0], sides[0])
    for i, (c, y) in enumerate(zip(widths, sides, strict=True)):
        before = widths[max(i - 1, 0)]
        add(3, c, c, y)
        add(3, c, c, y, plus=True)
        if before != c:
            add(3, before, c, y)
            add(1, before, c, y)
        if i:
            add(3, before, before, 2 * y, stride=2)
            add(3, c, c, y, up=True)
    add(1, top, 3 * top, small)
    add(1, top, top, small, plus=True)
    add(3, top, z, small)
    add(3, z, z, small)
    add(3, z, top, small)
    add(3, widths[0], 3, sides[0])
    for k, c, o, y, stride, up, plus in seen:
        out = 2 * y if up else y // stride
        pads = (0, 1) if stride == 2 else None
        shapes: tuple[Shape, ...] = ((batch, y, y, c), (o, k, k, c), (o,))
        words = f"{k}x{k} {c}->{o} at {y}x{y}" + ", halved" * (stride == 2) + ", doubled" * up
        if plus:
            make: Callable[[], Pass] = partial(of_tokenizer.conv2d_plus, k)
            shapes = (*shapes, (batch, out, out, o))
        else:
            make = partial(of_tokenizer.conv2d, k, stride, pads, up)
        operator = "conv2d_plus" if plus else "conv2d"
        yield Case(model, operator, words, shapes, partial(_of_cell, make))


def _norms(model: str, config: TokenizerConfig, batch: int) -> Iterator[Case]:
    widths = [config.channels * m for m in config.channel_multipliers]
    for i, c in enumerate(widths):
        y = config.image_size[0] >> i
        make = partial(of_tokenizer.group_norm, 32, True)
        shapes = ((batch, y, y, c), (c,), (c,))
        yield Case(model, "group_norm+silu", f"{c} at {y}x{y}", shapes, partial(_of_cell, make))
    make = partial(of_tokenizer.group_norm, 32)
    yield Case(model, "group_norm", f"{c} at {y}x{y}", shapes, partial(_of_cell, make))


def _nearest(model: str, config: TokenizerConfig, batch: int) -> Case:
    n, z, v = batch * config.schedule.tokens[-1], config.latent_channels, config.vocab_size
    passes = partial(_of_cell, of_tokenizer.nearest_code, gradient=False)
    return Case(model, "nearest_code", f"{n} of {v}", ((n, z), (v, z)), passes)


def _of_transformer(model: str, config: TransformerConfig, batch: int) -> Iterator[Case]:
    c, length, v = config.width, config.schedule.length, config.vocab_size
    blc, b1c = (batch, length, c), (batch, 1, c)
    wide = (batch, length, 4 * c)
    gelu = partial(_of_cell, of_transformer.Gelu)
    yield Case(model, "gelu", _by(wide), (wide,), gelu)
    norm = partial(_of_cell, of_transformer.ModulatedNorm)
    yield Case(model, "modulated_norm", _by(blc), (blc, b1c, b1c), norm)
    gated = partial(_of_cell, of_transformer.GatedSum)
    yield Case(model, "gated_sum", _by(blc), (blc, blc, b1c), gated)
    last = 2 * config.schedule.tokens[-1]
    linear = partial(_of_cell, of_transformer.Linear)
    for rows, i, o in (
        *((batch * length, i, o) for i, o in ((c, 3 * c), (c, c), (c, 4 * c), (4 * c, c), (c, v))),
        *((rows, i, o) for rows in (2, last) for i, o in ((c, 4 * c), (4 * c, c))),
        (batch, c, 6 * c),
    ):
        yield Case(model, "linear", f"{rows} rows {i}->{o}", ((rows, i), (o, i), (o,)), linear)
    yield from _attention(model, config, batch)


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _attention(model: str, config: TransformerConfig, batch: int) -> Iterator[Case]:
    schedule, heads, c = config.schedule, config.heads, config.width
    d, length, k = c // heads, schedule.length, len(schedule) - 1
    scale = Tensor(np.full((1, heads, 1, 1), 4, np.float32))

    def whole() -> dict[str, Pass]:
        attend = build(schedule, heads, d, True)

        class Mixed(nn.Cell):
            def __init__(self) -> None:
                super().__init__()
                self.attend = attend

            def construct(self, qkv_bl3c: Tensor) -> Tensor:
                return self.attend.projected(qkv_bl3c, scale, None, ())[0]

        return _of_cell(Mixed)

    shape = (batch, length, 3 * c)
    yield Case(model, "attention", _by((batch, length, c)), (shape,), whole)
    for images in (1, batch):
        shape = (2 * images, schedule.tokens[k], 3 * c)
        last = partial(_last_scale, schedule, heads, d, scale, 2 * images)
        yield Case(model, "cached attention", f"{_by(shape[:2])}x{c}", (shape,), last)


def _last_scale(
    schedule: ScaleSchedule, heads: int, d: int, scale: Tensor, batch: int
) -> dict[str, Pass]:
    """The last scale over the cache of those before it."""
    attend, k = build(schedule, heads, d, True), len(schedule) - 1
    past = attend.empty_cache(batch)
    if not past:  # a cache that grows
        shape = (batch, heads, schedule.offsets[k], d)
        past = (ops.ones(shape, ms.float32), ops.ones(shape, ms.float32))
    else:
        past = tuple(ops.ones_like(tensor) for tensor in past)
    position = attend.graph_input(k)

    @ms.jit
    def forward(qkv_bl3c: Tensor, *past: Tensor) -> Tensor:
        return attend.projected(qkv_bl3c, scale, position, past)[0]

    return {"forward": lambda qkv_bl3c: forward(qkv_bl3c, *past)}


def _adamw(model: str, width: int) -> Case:
    """One block's parameters and a bias, clipped by their global norm."""
    shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,))

    def passes() -> dict[str, Pass]:
        rng = np.random.default_rng(1)
        parameters = [
            Parameter(Tensor(rng.standard_normal(s).astype(np.float32)), name=f"p{i}")
            for i, s in enumerate(shapes)
        ]
        optimizer = AdamW(parameters, AdamWConfig(), lambda parameter: parameter.ndim > 1)
        scalars = optimizer.scalars(1, 1000)

        @ms.jit
        def step(gradients: tuple[Tensor, ...]) -> Tensor:
            return optimizer(gradients, scalars)

        return {"forward": lambda *gradients: step(ms.mutable(gradients))}

    return Case(model, "adamw", f"a block of width {width}", shapes, passes)


def cases() -> Iterator[Case]:
    digits, size = RunConfig().tokenizer, RunConfig().transformer
    small = TransformerConfig(
        depth=size.depth,
        width=size.width,
        heads=size.heads,
        num_classes=10,
        vocab_size=digits.vocab_size,
        latent_channels=digits.latent_channels,
        scales=digits.scales,
    )
    for model, tokenizer, images, transformer, batch in (
        ("digits", digits, 16, small, 64),
        ("d16", TokenizerConfig(), 1, TransformerConfig.preset("d16"), 2),
    ):
        yield from _convolutions(model, tokenizer, images)
        yield from _norms(model, tokenizer, images)
        yield _nearest(model, tokenizer, images)
        yield from _of_transformer(model, transformer, batch)
        yield _adamw(model, transformer.width)
