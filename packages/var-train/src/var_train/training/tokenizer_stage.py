"""Stage 1: the tokenizer, trained to reconstruct images from their token maps."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from var_tokenizer import Tokenizer
from var_tokenizer.common import (
    check_integer,
    check_number,
    fewer_images,
    needing_memory,
    to_floats,
)

from var_train.data.augmentation import Augmentation, draw_augmentation
from var_train.data.batches import step_indices, steps_of
from var_train.data.crops import draw_place
from var_train.data.image_sources import ImageSource, read_images
from var_train.data.loader import Loader
from var_train.losses.discriminator import (
    AdversaryConfig,
    PatchDiscriminator,
    adaptive_weight,
    hinge_loss,
)
from var_train.losses.reconstruction_loss import ReconstructionLoss, ReconstructionLossConfig
from var_train.operators import mean
from var_train.optimization.adamw import AdamW, AdamWConfig
from var_train.optimization.averages import Ema, averaged
from var_train.optimization.flat_weights import joined_in_training
from var_train.parallel import workers
from var_train.parallel.gradients import AllReduceMean
from var_train.reports.metrics_log import Value
from var_train.reports.tokenizer_quality import measure_tokenizer
from var_train.training.checkpoints import parameter_arrays, restore_parameters
from var_train.training.codebook import CodebookConfig, CodebookKeeper
from var_train.training.loop import BY_LOSS, Stopwatch, check_finite
from var_train.training.saving import training_bytes

log = logging.getLogger(__name__)

# Random streams under the seed. The transformer's stage has number 4.
_STEPS, _CODES, _DISCRIMINATOR = 1, 2, 3


@dataclass(frozen=True)
class TokenizerStageConfig:
    """How the tokenizer is trained."""

    epochs: int = 4
    """Passes over the training images."""
    batch: int = 16
    """Images per step, of all workers together."""
    optimizer: AdamWConfig = field(
        default_factory=lambda: AdamWConfig(learning_rate=2e-3, weight_decay=0.0)
    )
    losses: ReconstructionLossConfig = field(default_factory=ReconstructionLossConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    ema: float = 0.0
    """Decay of the averaged weights at each step. They are validated and saved; with 0, the last
    weights are."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    validation_images: int = 1000
    """How many held-out images to measure, at most."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        for name in ("epochs", "batch", "validation_images"):
            check_integer(name, getattr(self, name), 1)
        check_number("ema", self.ema, least=0, below=1)


class TokenizerTraining:
    """The stage as the training loop runs it, on this worker; trains ``tokenizer`` in place.

    Raises InputError for a batch that is larger than the data, or too small for the workers or the
    codebook.
    """

    name = "tokenizer"
    best_by = BY_LOSS

    def __init__(
        self,
        tokenizer: Tokenizer,
        train: ImageSource,
        val: ImageSource,
        config: TokenizerStageConfig,
        seed: int,
        keeps_codebook: bool = False,
    ) -> None:
        """keeps_codebook: the codes stay as they are, whatever ``config.codebook`` says."""
        if keeps_codebook:
            codebook = replace(config.codebook, start="random", update="gradient", revive_every=0)
            config = replace(config, codebook=codebook)
            tokenizer.quantize.embedding.weight.requires_grad = False
            log.info(
                "the codebook stays as it is in the file; the rest of the tokenizer is trained"
            )
        self._tokenizer, self._config, self._seed = tokenizer, config, seed
        self._train, self._val = train, val
        self.batch = config.batch
        less = fewer_images("--train-tokenizer.batch", config.batch)
        self.remedy = f"{less} (in a new run: it changes the training)"
        self.steps = steps_of(config.epochs, len(train), config.batch)
        (self._share,) = workers.shares(config.batch)
        self._own = self._share.images
        self._keeper = CodebookKeeper(tokenizer, config.codebook, config.batch)
        self._adversarial_from = round(config.adversary.start * self.steps)
        self._adaptive_weight = np.float32(0)  # none is known before the first adversarial step
        images = self._own.stop - self._own.start
        self._loader = Loader(train, self._prepare, self.steps, images)
        self._watch = Stopwatch()
        workers.synchronize(list(tokenizer.get_parameters()))
        self._compile()
        self.checkpoint_bytes = training_bytes(
            [*tokenizer.get_parameters(), *self._discriminator.get_parameters()], config.ema > 0
        )

    # ------------------------------------------------------------ the step
    def train_step(self, step: int) -> dict[str, float | list[float]]:
        """Takes one step; its randomness comes from the seed and the number of the step.

        Random numbers are drawn for the whole batch, of which each worker takes its share.
        Raises InputError if memory does not suffice.
        """
        with needing_memory("training the tokenizer", self.remedy):
            return self._train_step(step)

    def _train_step(self, step: int) -> dict[str, float | list[float]]:
        config = self._config
        with self._watch("data"):
            drawn = self._loader.take_with_all(step)
            drawn.take()
        if step == 0:
            images_bcyx = drawn.images_byxc.transpose(0, 3, 1, 2)
            self._keeper.start(images_bcyx, np.random.default_rng((self._seed, _CODES)))
        images, kept_kb, changes = Tensor(drawn.images_byxc), drawn.kept_kb, drawn.changes
        scalars = self._optimizer.scalars(step, self.steps)
        adversarial = bool(changes)
        if adversarial:
            weight = Tensor(self._adaptive_weight)
            values = self._adversarial_step(images, Tensor(kept_kb), scalars, weight, *changes)
        else:
            values = self._plain_step(images, Tensor(kept_kb), scalars)
        loss, reconstruction, ids_bl, vectors_blz, output, features, norm = values
        finite = self._optimizer.count(float(norm))
        mean_loss, mean_reconstruction = self._means(loss, reconstruction)
        metrics: dict[str, float | list[float]] = {
            "loss": mean_loss,
            "reconstruction": mean_reconstruction,
            "learning_rate": config.optimizer.rate(step, self.steps),
            "skipped_steps": self._optimizer.skipped,
        }
        if finite:
            metrics["gradient_norm"] = float(norm)
        if adversarial:
            scalars = self._discriminator_optimizer.scalars(
                step - self._adversarial_from, self.steps - self._adversarial_from
            )
            discriminator_loss, weight, norm = self._discriminator_step(
                images, output, features, scalars, *changes
            )
            self._discriminator_optimizer.count(float(norm))
            self._adaptive_weight = np.float32(weight.asnumpy())  # the same on all workers
            (mean_discriminator,) = self._means(discriminator_loss)
            metrics |= {
                "discriminator": check_finite(mean_discriminator, "discriminator", step),
                "adaptive_weight": check_finite(float(self._adaptive_weight), "adversarial", step),
            }
        if finite:  # otherwise weights, codes and averages stay as they are
            number = step - self._optimizer.skipped
            metrics |= self._keeper.follow(
                number, self.steps, ids_bl.asnumpy(), vectors_blz.asnumpy(), kept_kb, drawn.rng
            )
            if self._ema is not None:
                self._ema.update(number)
        return metrics | self._watch.lap()

    def _prepare(self, step: int) -> "_Drawn":
        """What a step needs besides weights; any thread may call it."""
        config = self._config
        rng = np.random.default_rng((self._seed, _STEPS, step))
        indices = step_indices(len(self._train), config.batch, self._seed, step)
        flip_b = rng.random(len(indices)) < 0.5
        flip = flip_b[self._own] if config.flip else None
        place_of = partial(draw_place, self._seed, step)
        images = read_images(self._train, indices[self._own], flip, place_of)
        kept_kb = self._draw_kept(rng)[:, self._own]
        changes: tuple[Tensor, ...] = ()
        if config.adversary.weight > 0 and step >= self._adversarial_from:
            size = self._tokenizer.config.image_size
            changes = draw_augmentation(rng, config.batch, size, self._own)
        return _Drawn(to_floats(images.pixels_byxc), kept_kb, changes, rng, images.take)

    def close(self) -> None:
        """Ends the threads that read ahead; the next step would start them again."""
        self._loader.close()

    def _means(self, *values: Tensor) -> tuple[float, ...]:
        """Means over this worker's images, each averaged over the whole batch."""
        own = np.array([float(value) for value in values]) * self._share.weight
        return tuple(float(mean) for mean in workers.gather(own).mean(0))

    def _draw_kept(self, rng: np.random.Generator) -> np.ndarray:
        """(K, B) float32: 1 for the scales that an image is reconstructed from."""
        batch, scales = self._config.batch, len(self._tokenizer.schedule)
        cut_b = rng.random(batch) < self._config.codebook.scale_dropout
        last_b = np.where(cut_b, rng.integers(scales, size=batch), scales)
        return (np.arange(scales)[:, None] <= last_b).astype(np.float32)

    # ------------------------------------------------------------ compilation
    def _compile(self) -> None:
        """Builds the steps as closures; MindSpore compiles them at their first call."""
        tokenizer, config = self._tokenizer, self._config
        self._change = Augmentation() if config.adversary.augment else _unchanged
        rng = np.random.default_rng((self._seed, _DISCRIMINATOR))
        self._discriminator = PatchDiscriminator(config.adversary, rng)
        workers.synchronize(list(self._discriminator.get_parameters()))
        loss_of = ReconstructionLoss(config.losses, tokenizer.config.image_size)
        parameters = tokenizer.trainable_params()
        codebook = tokenizer.quantize.embedding.weight
        if config.codebook.update == "ema":
            parameters = [p for p in parameters if p is not codebook]
        # the keeper changes the codebook between two steps
        apart = [p for p in parameters if p is codebook]
        self._weights = joined_in_training(parameters, _is_matrix, apart)
        self._optimizer = AdamW(
            list(self._weights.masters), config.optimizer, self._weights.is_decayed
        )
        self._ema = Ema(tokenizer.trainable_params(), config.ema) if config.ema else None
        self._plain_step = self._compile_step(loss_of, adversarial=False)
        self._adversarial_step = self._compile_step(loss_of, adversarial=True)
        self._discriminator_step = self._compile_discriminator_step(loss_of)

    def _compile_step(self, loss_of: ReconstructionLoss, adversarial: bool) -> Callable:
        """The tokenizer's step: ``step(images, kept_kb, scalars_3)``.

        adversarial: the discriminator's verdict is a part of the loss, and the step also takes the
        adaptive weight and the three tensors of ``draw_augmentation``.
        """
        tokenizer, weights, optimizer = self._tokenizer, self._weights, self._optimizer
        discriminator, change = self._discriminator, self._change
        commitment = self._config.codebook.commitment
        average = AllReduceMean(optimizer.parameters, self._share.weight)

        def losses(images: Tensor, kept_kb: Tensor, *adversary: Tensor) -> tuple:
            features, quantization, ids_bl, vectors_blz = tokenizer(images, commitment, kept_kb)
            output = tokenizer.reconstruction(features)
            reconstruction = loss_of(output, images)
            loss = reconstruction + quantization
            if adversarial:
                verdict = mean(discriminator(change(output, *adversary[1:])))
                loss = loss - adversary[0] * verdict
            return loss, reconstruction, ids_bl, vectors_blz, output, features

        gradients_of = ms.value_and_grad(losses, None, weights.trained, has_aux=True)

        @ms.jit
        def step(images: Tensor, kept_kb: Tensor, scalars_3: Tensor, *adversary: Tensor) -> tuple:
            values, gradients = gradients_of(images, kept_kb, *adversary)
            norm = optimizer(average(weights.gradients(gradients)), scalars_3)
            return (*values, weights.refresh(norm))

        return step

    def _compile_discriminator_step(self, loss_of: ReconstructionLoss) -> Callable:
        """The discriminator's step, and the adaptive weight for the tokenizer's next one.

        VQGAN (arXiv:2012.09841, equation 7) weighs the adversarial loss so that both losses
        have equal gradients at the decoder's last layer. That weight of this step would need a
        second pass through the decoder; the weight of the step before does not. The gradients
        are averaged over the workers before their norms are taken, so they are the whole batch's.
        """
        tokenizer, discriminator = self._tokenizer, self._discriminator
        config, change, last = self._config.adversary, self._change, tokenizer.last_layer
        optimizer = AdamW(discriminator.trainable_params(), config.optimizer, _is_matrix)
        self._discriminator_optimizer = optimizer
        average = AllReduceMean([last, last, *optimizer.parameters], self._share.weight)
        weight = config.weight

        def discriminator_loss(images: Tensor, output: Tensor, *changes: Tensor) -> Tensor:
            real = discriminator(change(images, *changes))
            return hinge_loss(real, discriminator(change(output, *changes)))

        def reconstruction_loss(images: Tensor, features: Tensor) -> Tensor:
            return loss_of(tokenizer.reconstruction(features), images)

        def adversarial_loss(features: Tensor, *changes: Tensor) -> Tensor:
            output = tokenizer.reconstruction(features)
            return -mean(discriminator(change(output, *changes)))

        gradients_of = ms.value_and_grad(discriminator_loss, None, optimizer.parameters)
        pull_of = ms.value_and_grad(reconstruction_loss, None, [last])
        push_of = ms.value_and_grad(adversarial_loss, None, [last])

        @ms.jit
        def step(
            images: Tensor, output: Tensor, features: Tensor, scalars_3: Tensor, *changes: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            _, pull = pull_of(images, features)
            _, push = push_of(features, *changes)
            loss, gradients = gradients_of(images, output, *changes)
            means = average((pull[0], push[0], *gradients))
            norm = optimizer(means[2:], scalars_3)
            return loss, weight * adaptive_weight(means[0], means[1]), norm

        return step

    # ------------------------------------------------------------ held-out images
    def validate(self, step: int) -> dict[str, Value]:
        """Figures of held-out images (``TokenizerFigures``) with the weights to save.

        The loss is the negative PSNR: the lowest is the best.
        """
        with averaged(self._ema), needing_memory("validating", self.remedy):
            figures = measure_tokenizer(
                self._tokenizer, self._val, self._config.batch, self._config.validation_images
            )
        return {
            "loss": -figures.psnr,
            "scale_psnr": figures.scale_psnr,
            "ssim": figures.ssim,
            "codebook_usage": figures.codebook_usage,
            "scale_codes_used": figures.scale_codes_used,
            "scale_perplexity": figures.scale_perplexity,
        }

    def finish(self) -> None:
        """Gives the tokenizer the weights to save."""
        if self._ema is not None:
            self._ema.copy_to_parameters()

    def save(self, path: Path) -> None:
        """Writes the tokenizer, with its averaged weights where there are some."""
        with averaged(self._ema):
            self._tokenizer.save(path)

    # ------------------------------------------------------------ resumption
    def metadata(self) -> dict[str, str]:
        """What a native file of the tokenizer says besides its weights."""
        return self._tokenizer.metadata()

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that later steps depend on."""
        arrays = parameter_arrays("tokenizer", self._tokenizer.get_parameters())
        arrays |= parameter_arrays("discriminator", self._discriminator.get_parameters())
        arrays |= {f"codebook/{name}": array for name, array in self._keeper.arrays().items()}
        state: dict[str, Any] = {"balance": float(self._adaptive_weight)}
        for name, optimizer in self._optimizers().items():
            moments, state[name] = optimizer.snapshot(name)
            arrays |= self._weights.named(moments) if name == "optimizer" else moments
        if self._ema is not None:
            arrays |= self._ema.snapshot("ema")
        return arrays, state

    def restore(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Restores what ``state`` returned."""
        restore_parameters("tokenizer", list(self._tokenizer.get_parameters()), arrays)
        self._weights.collect()
        restore_parameters("discriminator", list(self._discriminator.get_parameters()), arrays)
        self._keeper.restore({n: arrays[f"codebook/{n}"] for n in self._keeper.arrays()})
        self._adaptive_weight = np.float32(state["balance"])
        flattened = self._weights.flattened(arrays)
        for name, optimizer in self._optimizers().items():
            optimizer.restore(name, flattened, state[name])
        if self._ema is not None:
            self._ema.restore("ema", arrays)
        weights = [*self._tokenizer.get_parameters(), *self._discriminator.get_parameters()]
        workers.check_equal(weights)

    def _optimizers(self) -> dict[str, AdamW]:
        return {"optimizer": self._optimizer, "judge_optimizer": self._discriminator_optimizer}


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The images and random draws of a step, for this worker's share."""

    images_byxc: np.ndarray
    """(B, Y, X, 3) float32 in [-1, 1]."""
    kept_kb: np.ndarray
    """As ``CodebookKeeper.follow`` takes it."""
    changes: tuple[Tensor, ...]
    """The result of ``draw_augmentation``; () for a step without the adversary."""
    rng: np.random.Generator
    """For what is drawn after the step."""
    take: Callable[[], None]
    """As in ``ReadImages``."""


def _is_matrix(parameter: Parameter) -> bool:
    return parameter.ndim > 1


def _unchanged(images_byxc: Tensor, *_: Tensor) -> Tensor:
    """Replaces ``Augmentation``."""
    return images_byxc
