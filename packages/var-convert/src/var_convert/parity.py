"""Parity: the MindSpore model against the PyTorch reference, on the same random input."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
from var_tokenizer import TokenizerConfig
from var_tokenizer.common import InputError, write_checkpoint

from var_convert.conversion import write_model
from var_convert.opened_model import OpenedModel

if TYPE_CHECKING:
    import mindspore
    import torch

ArrayLike = Union[np.ndarray, "mindspore.Tensor", "torch.Tensor"]

# The project's limits of parity in float32: see README.
NEAR_TIE = 1e-4
IMAGE_LIMIT = 1e-4
INPUT_LIMIT = 1e-4
LOGIT_LIMIT = 1e-3
BATCH = 1  # at published size an image takes gigabytes of activations; guidance doubles the batch


@dataclass(frozen=True)
class IdDifference:
    """Token ids of two implementations.

    differing: the number of tokens that differ. unexplained: of the tokens of each image's first
    scale with a difference, those that differ although the nearest code was nearer than the second
    by more than NEAR_TIE, relative to its squared distance. Finer scales encode what coarser ones
    left over, so after a first difference they cannot be compared.
    """

    tokens: int
    differing: int
    unexplained: int


@dataclass(frozen=True)
class ForwardDifference:
    """ids: the tokenizer's, of an image; the transformer's, generated with top_k=1.

    The others: largest absolute differences; None if this kind of model has no such output.
    """

    ids: IdDifference
    images: float
    teacher_inputs: float | None = None
    logits: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether everything is within the project's limits of parity."""
        return (
            self.ids.unexplained == 0
            and self.images <= IMAGE_LIMIT
            and (self.teacher_inputs or 0) <= INPUT_LIMIT
            and (self.logits or 0) <= LOGIT_LIMIT
        )


def compare_forward(torch_side: OpenedModel, mindspore_side: OpenedModel) -> ForwardDifference:
    """Runs both models on a random image, or on a random label and random inputs.

    Raises InputError if PyTorch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--forward needs PyTorch; install it with: pip install 'var-convert[torch]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="var-convert-") as folder:
        native = write_model(mindspore_side, Path(folder) / "model.safetensors").target
        if torch_side.kind == "tokenizer":
            return _compare_tokenizers(torch_side, native)
        return _compare_transformers(torch_side, native, Path(folder) / "tokenizer.safetensors")


def _compare_tokenizers(torch_side: OpenedModel, native: Path) -> ForwardDifference:
    import torch
    from var_tokenizer import Tokenizer

    from var_convert.reference import TorchTokenizer

    reference, tokenizer = TorchTokenizer.of(torch_side), Tokenizer.load(native)
    rows, columns = reference.config.image_size
    noise = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, rows, columns, generator=noise) * 2 - 1
    with torch.inference_mode():
        latent = reference.latent(images)
        ids = reference.to_ids(latent)[0]
        gaps = reference.runner_up_gaps(latent, ids)
        found = tokenizer.encode(images.numpy())
        given = [i.numpy() for i in ids]
        return ForwardDifference(
            ids=compare_ids(given, found, [gap.numpy() for gap in gaps]),
            images=_largest(reference.decode(ids), tokenizer.decode(given)),
            teacher_inputs=_largest(reference.teacher_inputs(ids), tokenizer.teacher_inputs(given)),
        )


def _compare_transformers(torch_side: OpenedModel, native: Path, made: Path) -> ForwardDifference:
    """A small random tokenizer, the same on both sides, makes the images."""
    import torch
    from var_tokenizer import Tokenizer
    from var_transformer import Transformer, generate

    from var_convert.reference import TorchTokenizer, TorchTransformer, torch_generate

    reference, model = TorchTransformer.of(torch_side), Transformer.load(native)
    config = reference.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = TorchTokenizer(
            TokenizerConfig(
                vocab_size=config.vocab_size,
                latent_channels=config.latent_channels,
                channels=32,
                channel_multipliers=(1,),
                res_blocks=1,
                scales=config.scales,
            )
        )
    weights = {name: tensor.numpy() for name, tensor in tokenizer.state_dict().items()}
    write_checkpoint(made, "tokenizer", tokenizer.config, weights)
    noise = torch.Generator().manual_seed(0)
    labels = torch.randint(config.num_classes, (BATCH,), generator=noise)
    read = config.schedule.length - config.schedule.tokens[0]
    inputs = torch.randn(BATCH, read, config.latent_channels, generator=noise)
    with torch.inference_mode():
        logits = reference(labels, inputs)
        expected = torch_generate(reference, tokenizer, labels, top_k=1)
    found = generate(model, Tokenizer.load(made), labels.numpy(), top_k=1)
    return ForwardDifference(
        ids=compare_ids([i.numpy() for i in expected.ids], found.ids),
        images=_largest(expected.images, found.images),
        logits=_largest(logits, model.logits(labels.numpy(), inputs.numpy())),
    )


def compare_ids(
    expected: Sequence[ArrayLike],
    found: Sequence[ArrayLike],
    gaps: Sequence[np.ndarray] | None = None,
) -> IdDifference:
    """Ids of K scales, (B, l) each. gaps: of every expected id, d2 / d1 - 1 of its two nearest
    codes' squared distances; without them no difference is explained by a near tie.
    """
    pairs = [(np.asarray(e), np.asarray(f)) for e, f in zip(expected, found, strict=True)]
    wrong = [e != f.reshape(e.shape) for e, f in pairs]
    clear = [w if gaps is None else w & (gaps[k] > NEAR_TIE) for k, w in enumerate(wrong)]
    wrong_bk = np.stack([w.any(1) for w in wrong], axis=1)
    unexplained = sum(
        int(clear[row.argmax()][b].sum()) for b, row in enumerate(wrong_bk) if row.any()
    )
    return IdDifference(sum(w.size for w in wrong), sum(int(w.sum()) for w in wrong), unexplained)


def _largest(expected: ArrayLike, found: ArrayLike) -> float:
    one, two = np.asarray(expected), np.asarray(found)
    if one.shape != two.shape:
        raise InputError(f"--forward: outputs of shapes {one.shape} and {two.shape}")
    return float(np.abs(one - two).max(initial=0))
