"""Stage 2: the transformer, trained to predict each token map from the coarser ones."""

from collections.abc import Callable
from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from var_tokenizer import InputError, Tokenizer
from var_transformer import Transformer, check_pair

from var_train.data import epoch_order
from var_train.loop import check_finite
from var_train.optimizer import AdamW, AdamWConfig
from var_train.progress import MetricsLog, step_bar
from var_train.tokenizer_stage import padded_batches, steps_in_epoch


@dataclass(frozen=True)
class TransformerStage:
    """How the transformer is trained. Raises InputError for a value out of range."""

    epochs: int = 8
    """Passes over the training images."""
    batch: int = 64
    """Images a step."""
    optimizer: AdamWConfig = field(default_factory=lambda: AdamWConfig(learning_rate=2e-3))
    condition_drop: float = 0.1
    """Share of labels replaced by "no class", which classifier-free guidance needs."""
    drop_path: float | None = None
    """Rate of the last block, growing linearly from 0 at the first; None for the published
    0.1 * depth / 24."""
    validations: int = 5
    """How often the held-out images are measured, evenly over the run."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "validations"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("condition_drop", "drop_path"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"{name} is {value}; expected [0, 1)")


@dataclass(frozen=True)
class TokenSet:
    """Token maps of N images: K arrays (N, s_y * s_x) int32, and labels (N,) int32."""

    ids: list[np.ndarray]
    labels_n: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_n)

    def batch(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        return [ids[indices] for ids in self.ids], self.labels_n[indices]


def train_transformer(
    model: Transformer,
    tokenizer: Tokenizer,
    train: TokenSet,
    val: TokenSet,
    stage: TransformerStage,
    seed: int,
    metrics: MetricsLog,
) -> dict[str, list[float]]:
    """Trains ``model`` in place; returns the last validation (see ``validate``)."""
    check_pair(model, tokenizer)
    steps_per_epoch = steps_in_epoch(len(train), stage.batch)
    steps = stage.epochs * steps_per_epoch
    rng = np.random.default_rng((seed, 2))
    step_fn, optimizer = _compile_step(model, stage)
    drop_path = model.config.drop_path if stage.drop_path is None else stage.drop_path
    validate_at = set(np.linspace(0, steps, stage.validations + 1).astype(int)[1:] - 1)
    validation: dict[str, list[float]] = {}
    with step_bar("transformer", steps) as bar:
        for step in range(steps):
            epoch, position = divmod(step, steps_per_epoch)
            order = epoch_order(len(train), seed, epoch)
            ids, labels = train.batch(order[position * stage.batch :][: stage.batch])
            dropped = rng.random(len(labels)) < stage.condition_drop
            labels = np.where(dropped, model.config.num_classes, labels).astype(np.int32)
            loss, norm = step_fn(
                Tensor(labels),
                tokenizer.teacher_inputs(ids),
                Tensor(np.concatenate(ids, 1)),
                Tensor(draw_keep(rng, model.config.depth, len(labels), drop_path)),
                optimizer.scalars(step, steps),
            )
            loss = check_finite(float(loss), "transformer", step)
            metrics.write(
                "transformer",
                step,
                loss=loss,
                gradient_norm=float(norm),
                learning_rate=stage.optimizer.rate(step, steps),
            )
            bar.advance(len(labels), loss)
            if step in validate_at:
                validation = validate(model, tokenizer, val, stage.batch)
                metrics.write_validation("transformer", step, **validation)
    return validation


def draw_keep(rng: np.random.Generator, depth: int, batch: int, last_rate: float) -> np.ndarray:
    """(depth, 2, batch, 1, 1): 0 where an image skips a branch, else 1 / (1 - rate).

    Drop path (arXiv:1603.09382): the rate grows linearly from 0 at the first block.
    """
    rate = np.linspace(0, last_rate, depth).reshape(depth, 1, 1, 1, 1)
    kept = rng.random((depth, 2, batch, 1, 1)) >= rate
    return (kept / (1 - rate)).astype(np.float32)


def decays(parameter: Parameter) -> bool:
    """Weight decay as published: of matrices, not of embeddings, biases, gains and scales."""
    exempt = ("class_emb", "lvl_embed", "pos_start", "pos_1LC", "scale_mul", "ada_gss")
    return parameter.ndim > 1 and not any(name in parameter.name for name in exempt)


def _compile_step(model: Transformer, stage: TransformerStage) -> tuple[Callable, AdamW]:
    parameters = model.trainable_params()
    optimizer = AdamW(parameters, stage.optimizer, decays)

    def loss_of(labels_b: Tensor, inputs_blz: Tensor, ids_bl: Tensor, keep: Tensor) -> Tensor:
        logits_blv = model(labels_b, inputs_blz, keep)
        return ops.cross_entropy(logits_blv.reshape(-1, logits_blv.shape[2]), ids_bl.reshape(-1))

    gradients_of = ms.value_and_grad(loss_of, None, parameters)

    @ms.jit
    def step(
        labels_b: Tensor, inputs_blz: Tensor, ids_bl: Tensor, keep: Tensor, scalars_3: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, gradients = gradients_of(labels_b, inputs_blz, ids_bl, keep)
        return loss, optimizer(gradients, scalars_3)

    return step, optimizer


def validate(
    model: Transformer, tokenizer: Tokenizer, val: TokenSet, batch: int
) -> dict[str, list[float]]:
    """``scale_loss`` and ``scale_accuracy``: K numbers each, over held-out images.

    The loss is the mean cross entropy a token in nats, teacher forced, with labels, without
    dropout; the accuracy is how often the likeliest token is the right one.
    """
    losses, hits = [], []
    for indices in padded_batches(len(val), batch):
        ids, labels = val.batch(indices)
        logits_blv = np.asarray(model.logits(labels, tokenizer.teacher_inputs(ids)))
        ids_bl = np.concatenate(ids, 1)
        top = logits_blv.max(-1, keepdims=True)
        log_sum = np.log(np.exp(logits_blv - top).sum(-1)) + top[..., 0]
        picked = np.take_along_axis(logits_blv, ids_bl[..., None], -1)[..., 0]
        losses.append(log_sum - picked)
        hits.append(logits_blv.argmax(-1) == ids_bl)
    loss_nl = np.concatenate(losses)[: len(val)]
    hit_nl = np.concatenate(hits)[: len(val)]
    split = model.config.schedule.split
    return {
        "scale_loss": [float(part.mean()) for part in split(loss_nl)],
        "scale_accuracy": [float(part.mean()) for part in split(hit_nl)],
    }
