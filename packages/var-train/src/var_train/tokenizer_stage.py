"""Stage 1: the tokenizer, trained to reconstruct images from their token maps."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from var_tokenizer import InputError, Tokenizer

from var_train.data import ImageSource, epoch_order
from var_train.optimizer import AdamW, AdamWConfig
from var_train.progress import MetricsLog, step_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizerStage:
    """How the tokenizer is trained. Raises InputError for a value out of range."""

    epochs: int = 3
    """Passes over the training images."""
    batch: int = 16
    """Images a step."""
    optimizer: AdamWConfig = field(
        default_factory=lambda: AdamWConfig(learning_rate=2e-3, weight_decay=0.0)
    )
    commitment: float = 0.25
    """Weight of drawing the encoder's output to the codes (VQ-VAE's beta)."""
    revive_every: int = 20
    """Steps between revivals: a code that no image used since the last is placed on a random
    residual vector of the batch at hand. The last quarter of the steps revives none."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "revive_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.commitment < 0:
            raise InputError(f"commitment is {self.commitment}; expected at least 0")


def train_tokenizer(
    tokenizer: Tokenizer, train: ImageSource, stage: TokenizerStage, seed: int, metrics: MetricsLog
) -> None:
    """Trains ``tokenizer`` in place. Raises InputError where a batch is larger than the data."""
    steps_per_epoch = steps_in_epoch(len(train), stage.batch)
    steps = stage.epochs * steps_per_epoch
    rng = np.random.default_rng((seed, 1))
    step_fn, optimizer = _compile_step(tokenizer, stage)
    first, _ = train.batch(epoch_order(len(train), seed, 0)[: stage.batch])
    revive_codes(tokenizer, first, np.ones(tokenizer.vocab_size, bool), rng)

    used = np.zeros(tokenizer.vocab_size, bool)
    usage = tokenizer.quantize.ema_vocab_hit_SV
    with step_bar("tokenizer  ", steps) as bar:
        for step in range(steps):
            epoch, position = divmod(step, steps_per_epoch)
            order = epoch_order(len(train), seed, epoch)
            images, _ = train.batch(order[position * stage.batch :][: stage.batch])
            loss, reconstruction, ids, norm = step_fn(
                Tensor(images), optimizer.scalars(step, steps)
            )
            loss = check_finite(float(loss), "tokenizer", step)
            hits_sv = count_hits(ids.asnumpy(), tokenizer)
            used |= hits_sv.any(0)
            # assigned in place: graphs that are compiled already keep the old data after set_data
            ops.assign(usage, Tensor(smooth(usage.asnumpy(), hits_sv, step)))
            metrics.write(
                "tokenizer",
                step,
                loss=loss,
                reconstruction=float(reconstruction),
                gradient_norm=float(norm),
                learning_rate=stage.optimizer.rate(step, steps),
            )
            bar.advance(len(images), loss)
            if (step + 1) % stage.revive_every == 0 and step < 0.75 * steps:
                revive_codes(tokenizer, images, ~used, rng)
                log.info("step %d: revived %d codes", step, int((~used).sum()))
                used[:] = False


def _compile_step(tokenizer: Tokenizer, stage: TokenizerStage) -> tuple[Callable, AdamW]:
    parameters = tokenizer.trainable_params()
    optimizer = AdamW(parameters, stage.optimizer, lambda p: p.ndim > 1)
    commitment = stage.commitment

    def losses(images_bcyx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output_bcyx, quantization, ids = tokenizer(images_bcyx, commitment)
        error = output_bcyx - images_bcyx
        reconstruction = (error * error).mean() + error.abs().mean()
        return reconstruction + quantization, reconstruction, ops.concat(ids, 1)

    gradients_of = ms.value_and_grad(losses, None, parameters, has_aux=True)

    @ms.jit
    def step(images_bcyx: Tensor, scalars_3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (loss, reconstruction, ids), gradients = gradients_of(images_bcyx)
        return loss, reconstruction, ids, optimizer(gradients, scalars_3)

    return step, optimizer


def count_hits(ids_bl: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """(K, V) float32: how often each scale chose each code, for ids (B, L) of all scales."""
    return np.stack(
        [
            np.bincount(ids.ravel(), minlength=tokenizer.vocab_size)
            for ids in tokenizer.schedule.split(ids_bl)
        ]
    ).astype(np.float32)


def smooth(usage_sv: np.ndarray, hits_sv: np.ndarray, step: int) -> np.ndarray:
    """The running usage that published checkpoints carry: slower once it has settled."""
    keep = 0.0 if step == 0 else 0.9 if step < 100 else 0.99
    return keep * usage_sv + np.float32(1 - keep) * hits_sv


def revive_codes(
    tokenizer: Tokenizer, images_bcyx: np.ndarray, dead_v: np.ndarray, rng: np.random.Generator
) -> None:
    """Places each code of ``dead_v`` (V,) on a residual vector of the images, at random.

    Every scale is as likely as any other, so that the coarse ones, which have few tokens, get
    their share of the codes.
    """
    count = int(dead_v.sum())
    if not count:
        return
    scales = [
        np.asarray(v).reshape(-1, tokenizer.latent_channels)
        for v in tokenizer.residual_vectors(images_bcyx)
    ]
    chosen = [scales[k] for k in rng.integers(len(scales), size=count)]
    codebook = tokenizer.quantize.embedding.weight
    codes_vz = codebook.asnumpy().copy()
    codes_vz[dead_v] = [vectors[rng.integers(len(vectors))] for vectors in chosen]
    ops.assign(codebook, Tensor(codes_vz))


def steps_in_epoch(images: int, batch: int) -> int:
    """Whole batches an epoch. Raises InputError where there is none."""
    if images < batch:
        raise InputError(f"batch is {batch}; expected at most {images}, the training images")
    return images // batch


def check_finite(loss: float, stage: str, step: int) -> float:
    """The loss itself; raises InputError where it is NaN or infinite."""
    if not np.isfinite(loss):
        raise InputError(
            f"{stage} loss is {loss} at step {step}; expected a finite number "
            "(a lower learning_rate or clip may help)"
        )
    return loss


def reconstruct(
    tokenizer: Tokenizer, images: ImageSource, batch: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Ids of every scale, K arrays (N, s_y * s_x), and reconstructions (N, 3, Y, X) in [-1, 1]."""
    ids, outputs = [], []
    for indices in padded_batches(len(images), batch):
        images_bcyx, _ = images.batch(indices)
        ids.append([np.asarray(i) for i in tokenizer.encode(images_bcyx)])
        outputs.append(np.asarray(tokenizer.decode(ids[-1])))
    n = len(images)
    return [np.concatenate(k)[:n] for k in zip(*ids, strict=True)], np.concatenate(outputs)[:n]


def padded_batches(n: int, batch: int) -> np.ndarray:
    """(batches, batch) indices of 0..n-1; the last batch is filled up with repeats.

    Batches of one size compile once.
    """
    return np.resize(np.arange(n), (-(-n // batch), batch))
