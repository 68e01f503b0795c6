"""What a case runs, in a process of its own: ``programs.py NAME DEPTH``.

Each program does its work twice. The first time compiles; the second has the memory and the
transfers of every further one.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from paths import CASES
from region import region

ms.set_device("Ascend")  # before the packages ask for the device

from mindspore import communication  # noqa: E402
from var_tokenizer import (  # noqa: E402
    SCALES_256,
    SCALES_512,
    Tokenizer,
    TokenizerConfig,
)
from var_train import (  # noqa: E402
    AdversaryConfig,
    ImageSet,
    PrecisionConfig,
    TokenizerStageConfig,
    TokenizerTraining,
    TokenSet,
    TransformerStageConfig,
    TransformerTraining,
)
from var_transformer import (  # noqa: E402
    BackendConfig,
    Sampler,
    Transformer,
    TransformerConfig,
)
from var_transformer import edit as edit_image  # noqa: E402
from var_transformer import generate as generate_images  # noqa: E402

SAMPLER = Sampler(cfg=1.5, top_k=900, top_p=0.95)  # as published


def train_transformer(
    preset: str, depth: int, batch: int, dtype: Any, jit_level: str, stage: Any
) -> None:
    """Steps of the transformer's training on tokens in memory."""
    ms.jit = partial(ms.jit, jit_level=jit_level)  # of the step, which is not compiled yet
    model = _transformer(preset, depth, dtype)
    schedule = model.config.schedule
    # the images' own tokenizer is not used but for the inputs: as small as it can be
    tokenizer = Tokenizer(
        TokenizerConfig(
            channels=32,
            channel_multipliers=(1, 1, 1, 1, 1),
            res_blocks=1,
            scales=model.config.scales,
        )
    )
    images = batch * int(os.environ["RANK_SIZE"])
    rng = np.random.default_rng(0)
    ids_nl = rng.integers(0, model.config.vocab_size, (images, schedule.length)).astype(np.int32)
    labels_n = rng.integers(0, model.config.num_classes, images).astype(np.int32)
    tokens = TokenSet(ids_nl, labels_n)
    config = TransformerStageConfig(
        epochs=2, batch=images, precision=PrecisionConfig(dtype=dtype), **stage
    )
    training = TransformerTraining(model, tokenizer, tokens, tokens, config, 0)
    _twice(training.train_step)


def generate(preset: str, depth: int, batch: int, dtype: str) -> None:
    """Images of as many classes, guided, with the published sampling."""
    _draw(preset, depth, batch, dtype)


def stream(preset: str, depth: int, batch: int, dtype: str) -> None:
    """The same, with the images after each scale."""
    _draw(preset, depth, batch, dtype, on_scale=lambda k, images: None)


def _draw(preset: str, depth: int, batch: int, dtype: str, **options: Any) -> None:
    model, tokenizer = _pair(preset, depth, dtype)
    labels_b = np.arange(batch, dtype=np.int32)

    def work(turn: int) -> None:
        generate_images(model, tokenizer, labels_b, sampler=SAMPLER, seed=turn, **options)

    _twice(work)


def edit(preset: str, depth: int, batch: int, dtype: str) -> None:
    """Variants of an image, whose left half is redrawn."""
    model, tokenizer = _pair(preset, depth, dtype)
    y, x = tokenizer.config.image_size
    image_cyx, mask_yx = np.zeros((3, y, x), np.float32), np.zeros((y, x), bool)
    mask_yx[:, : x // 2] = True
    labels_b = np.arange(batch, dtype=np.int32)
    _twice(lambda turn: edit_image(model, tokenizer, image_cyx, mask_yx, labels_b, SAMPLER, turn))


def encode(depth: int, batch: int, size: int) -> None:
    """Images to ids."""
    tokenizer = _tokenizer(size)
    images_bcyx = np.zeros((batch, 3, size, size), np.float32)
    _twice(lambda turn: tokenizer.encode_sequence(images_bcyx))


def decode(depth: int, batch: int, size: int) -> None:
    """Ids to images, read back."""
    tokenizer = _tokenizer(size)
    ids_bl = np.zeros((batch, tokenizer.schedule.length), np.int32)
    _twice(lambda turn: tokenizer.decode(ids_bl).asnumpy())


def teacher_inputs(depth: int, batch: int) -> None:
    """What a training step of the transformer computes of its ids first."""
    tokenizer = Tokenizer(TokenizerConfig())
    ids_bl = np.zeros((batch, tokenizer.schedule.length), np.int32)
    _twice(lambda turn: tokenizer.teacher_inputs(ids_bl))


def train_tokenizer(depth: int, batch: int, weight: float) -> None:
    """Steps of the tokenizer's training; with a discriminator if its weight is not 0."""
    tokenizer = Tokenizer(TokenizerConfig())
    images_nyxc = np.zeros((max(batch, 32), *tokenizer.config.image_size, 3), np.uint8)
    images = ImageSet(images_nyxc, np.zeros(len(images_nyxc), np.int32), ("all",))
    config = TokenizerStageConfig(
        epochs=2, batch=batch, adversary=AdversaryConfig(weight=weight, start=0.0)
    )
    _twice(TokenizerTraining(tokenizer, images, images, config, 0).train_step)


def _tokenizer(size: int) -> Tokenizer:
    return Tokenizer(TokenizerConfig(scales={256: SCALES_256, 512: SCALES_512}[size]))


def _pair(preset: str, depth: int, dtype: str) -> tuple[Transformer, Tokenizer]:
    model = _transformer(preset, depth, dtype)
    return model, Tokenizer(TokenizerConfig(scales=model.config.scales))


def _transformer(preset: str, depth: int, dtype: str) -> Transformer:
    """The model with fewer blocks: of the same width and heads."""
    config = replace(TransformerConfig.preset(preset), depth=depth)
    return Transformer(config, None, BackendConfig(dtype=getattr(ms, dtype)))


def _twice(work: Callable[[int], object]) -> None:
    for turn, name in enumerate(("first", "second")):
        with region(name):
            work(turn)


PROGRAMS: dict[str, Callable[..., None]] = {
    program.__name__: program
    for program in (
        *(train_transformer, train_tokenizer, teacher_inputs),
        *(generate, stream, edit, encode, decode),
    )
}


def main() -> None:
    case = CASES[sys.argv[1]]
    if case.cards > 1:
        ms.set_context(mode=ms.GRAPH_MODE)
        communication.init()
        ms.set_context(mode=ms.PYNATIVE_MODE)
    PROGRAMS[case.program](depth=int(sys.argv[2]), **case.options)


if __name__ == "__main__":
    main()
