"""Checks of the operators that the tokenizer is made of, in float32, as it always is."""

from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from var_tokenizer import (
    TokenizerConfig,
    area_matrix,
    bicubic_matrix,
    layout,
    operators,
)

from var_transformer.check_ascend import tokenizer_definitions as of
from var_transformer.check_ascend.checks import Check

_GROUPS = 32
_CONVOLUTION: dict[str, dict[str, Any]] = {
    "the bias is missing": {"has_bias": False},
    "the kernel is flipped": {"flipped": True},
    "the weight is read channels first": {"read_as_oihw": True},
    "the products round float32 to 10 bits (HF32, or half)": {"mantissa": 10},
}
_GROUP_NORM: dict[str, dict[str, Any]] = {
    "epsilon is 1e-5, not 1e-6": {"epsilon": 1e-5},
    "neighbouring channels are in different groups": {"interleaved": True},
    "mean and variance count as constants": {"constant_statistics": True},
    "the SiLU is missing": {"silu": False},
}


class _OnPixels(nn.Cell):
    """An operator of maps, of pixels (B, Y, X, C); to_tokens: its result is no map."""

    def __init__(self, run: nn.Cell, to_tokens: bool = False) -> None:
        super().__init__()
        self.run, self.maps = run, layout.maps()
        self.pixels = nn.Identity() if to_tokens else layout.pixels()

    def construct(self, x_byxc: Tensor, *others: Any) -> Tensor:  # noqa: ANN401
        return self.pixels(self.run(self.maps(x_byxc), *others))


class _With(nn.Cell):
    """An operator whose last argument is known."""

    def __init__(self, run: nn.Cell, last: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.run, self.last = run, last

    def construct(self, x: Tensor) -> Tensor:
        return self.run(x, self.last)


class _ToPixels(nn.Cell):
    """An operator whose result is a map, as pixels."""

    def __init__(self, run: nn.Cell) -> None:
        super().__init__()
        self.run, self.pixels = run, layout.pixels()

    def construct(self, x_blc: Tensor) -> Tensor:
        return self.pixels(self.run(x_blc))


def tokenizer_checks(codec: TokenizerConfig, images: int, compiled: bool = True) -> list[Check]:
    """Of each operator at the size of the latent map."""
    rng = np.random.default_rng(3)
    (y, x), c = codec.schedule.sizes[-1], codec.channels
    small, z = codec.schedule.sizes[-2], codec.latent_channels

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def check(name: str, run: Any, names: str, *terms: Any) -> Check:  # noqa: ANN401
        """terms: the arrays, the result's shape, its definition, and mistakes in it."""
        arrays, shape, definition, mistakes = terms
        wrong = {key: partial(definition, **changes) for key, changes in mistakes.items()}
        named = tuple(names.split())
        of_all = (arrays, shape, named, definition, wrong)
        return Check(f"tokenizer's {name}", ms.float32, run, *of_all, (), compiled)

    def convolution(name: str, mistakes: dict[str, dict[str, Any]], **terms: Any) -> Check:  # noqa: ANN401
        stride, pads = terms.get("stride", 1), terms.get("pads", (1, 1))
        doubled = terms.get("doubled", False)
        weight = normal(c, 3, 3, c) / np.float32(np.sqrt(9 * c))
        times = 2 if doubled else 1
        rows, columns = ((n * times + sum(pads) - 3) // stride + 1 for n in (y, x))
        return check(
            name,
            _OnPixels(operators.conv2d(3, stride, pads, doubled)),
            "x weight bias",
            (normal(images, y, x, c), weight, normal(c)),
            (images, rows, columns, c),
            partial(of.convolution, **terms),
            _CONVOLUTION | mistakes,
        )

    flat = normal(images, y, x, c)
    flat[..., : c // 2] *= 3e-3  # groups whose variance is not far above epsilon
    book = normal(codec.vocab_size, z)
    book[::2] *= 4  # codes whose lengths matter
    ids = rng.integers(0, codec.vocab_size, 64)
    ids[1] = ids[0]
    vectors = book[ids] + np.float32(0.1) * normal(64, z)
    down, up = area_matrix((y, x), small), bicubic_matrix(small, (y, x))
    latent, tokens = normal(images, y, x, z), normal(images, small[0] * small[1], z)
    qkv, scale = normal(images, y, x, 3 * c), c**-0.5
    return [
        convolution("convolution", {"its zeros are at the end alone": {"pads": (0, 2)}}),
        convolution(
            "halving",
            {"its zeros are not at the end": {"pads": (1, 1)}},
            stride=2,
            pads=(0, 1),
        ),
        convolution("doubling", {"images are repeated, not pixels": {"tiled": True}}, doubled=True),
        check(
            "group norm",
            _OnPixels(operators.group_norm(_GROUPS, silu=True)),
            "x gain bias",
            (flat, normal(c), normal(c)),
            flat.shape,
            of.group_norm,
            _GROUP_NORM,
        ),
        check(
            "attention",
            _With(_OnPixels(layout.pixel_attention()), scale),
            "qkv",
            (qkv,),
            (images, y, x, c),
            partial(of.pixel_attention, scale=scale),
            {
                "the scale is left out": {"scale": 1.0},
                "the scale is folded in twice": {"scale": scale**2},
                "keys and values are swapped": {"swapped": (0, 2, 1)},
                "the softmax runs over the queries": {"over_queries": True},
            },
        ),
        check(
            "area averaging",
            _With(_OnPixels(layout.tokens_of_map(), True), Tensor(down)),
            "map",
            (latent,),
            tokens.shape,
            partial(of.resized, matrix_mn=down),
            {"the map is read column by column": {"by_column": True}},
        ),
        check(
            "upsampling",
            _ToPixels(_With(layout.map_of_tokens((y, x)), Tensor(up))),
            "tokens",
            (tokens,),
            latent.shape,
            partial(of.resized, matrix_mn=up),
            {},
        ),
        check(
            "codes",
            _With(layout.rows_at(), Tensor(ids.astype(np.int32))),
            "codes",
            (book,),
            (64, z),
            partial(of.codes_at, ids=ids),
            {"a code that is read twice has one gradient": {"once": True}},
        ),
        check(
            "nearest code",
            operators.nearest_code(),
            "",
            (vectors, book),
            (64,),
            of.nearest_code,
            {
                "the lengths of the codes do not count": {"lengths": False},
                "the farthest code is found": {"sign": -1},
            },
        ),
    ]
