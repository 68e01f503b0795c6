"""Stage 2: the transformer, trained to predict each token map from the coarser ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, check_integer, check_number, needing_memory
from var_transformer import LoraConfig, Transformer, TransformerConfig, check_pair

from var_train.data.batches import padded_batches, steps_of
from var_train.data.image_sources import Batch
from var_train.data.loader import Loader, read_ahead
from var_train.data.token_sources import TokenSet, TokenSource, read_tokens
from var_train.judging.validations import ValidationJudge
from var_train.losses.token_loss import token_losses
from var_train.optimization.adamw import AdamW, AdamWConfig, is_decayed, release_gradients
from var_train.optimization.averages import Ema, averaged, check_averages
from var_train.optimization.flat_weights import FlatWeights, OwnWeights, weights_in_training
from var_train.optimization.loss_scale import DTYPES, LossScale, PrecisionConfig
from var_train.parallel import workers
from var_train.parallel.gradients import AllReduceMean
from var_train.parallel.sharding import Sharding
from var_train.reports.images import SamplingConfig, draw_grid
from var_train.reports.metrics_log import Value
from var_train.training.attention_choice import AttentionChoice
from var_train.training.checkpoints import ArraysOnDemand, parameter_arrays, restore_parameters
from var_train.training.device_limits import check_device
from var_train.training.loop import BY_LOSS, Stopwatch
from var_train.training.progressive import newest_weight, scales_in_training
from var_train.training.saving import training_bytes
from var_train.training.step_parts import Part, draw_part
from var_train.training.transformer_gradients import loss_and_gradients


@dataclass(frozen=True)
class TransformerStageConfig:
    """How the transformer is trained."""

    epochs: int = 12
    """Passes over the training images."""
    batch: int = 64
    """Images per step, of all workers together."""
    accumulation: int = 1
    """Parts that a worker's share of the batch is computed in, one after another."""
    optimizer: AdamWConfig = field(default_factory=lambda: AdamWConfig(learning_rate=2e-3))
    lora: LoraConfig = field(default_factory=LoraConfig)
    base_rate: float | None = None
    """Peak rate for a batch of 256. If given, the peak is BASE_RATE * batch / 256, and
    optimizer.learning_rate is not read."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    recompute: bool = False
    """Compute each block again in the backward pass, to save memory."""
    shard_optimizer: bool = False
    """Keep the moments of a weight on one worker only, to save memory."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all tokens."""
    condition_drop: float = 0.1
    """Share of labels replaced by "no class", which classifier-free guidance needs."""
    drop_path: float | None = None
    """Rate of the last block, growing linearly from 0 at the first; None for the published
    0.1 * depth / 24."""
    scale_weights: tuple[float, ...] = ()
    """Weight of each scale's tokens in the loss, relative to the others; () for equal weights."""
    progressive: float = 0.0
    """Share of the steps over which the scales join one after another, coarse to fine. Over the
    next 300th of the steps, the weight of a new one in the loss rises to its own."""
    progressive_start: int = 2
    """Scales at the first step, if they join one after another."""
    gate_gain: float = 1e-5
    """What the random weights of AdaLN's gates are multiplied by in a new model, so that each block
    starts close to the identity (alng in the published code)."""
    ema: float = 0.0
    """Decay of the averaged weights at each step. They are validated and saved; with 0, the last
    weights are."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    validation_images: int = 10_000
    """How many held-out images to measure, at most."""
    samples_per_class: int = 4
    """Columns of the grid of samples that each validation draws; 0 for none."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        for name, least in (
            ("epochs", 1),
            ("batch", 1),
            ("accumulation", 1),
            ("progressive_start", 2),
            ("validation_images", 1),
            ("samples_per_class", 0),
        ):
            check_integer(name, getattr(self, name), least)
        for name in ("label_smoothing", "condition_drop", "drop_path", "ema"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, least=0, below=1)
        if self.base_rate is not None:
            check_number("base_rate", self.base_rate, above=0)
        check_number("progressive", self.progressive, least=0, most=1)
        check_number("gate_gain", self.gate_gain, least=0)
        if self.scale_weights:
            self._check_scale_weights()

    def _check_scale_weights(self) -> None:
        weights = self.scale_weights
        if not all(0 <= w < math.inf for w in weights) or not any(weights):
            raise InputError(
                f"scale_weights is {weights}; expected numbers of at least 0, not all 0"
            )
        first = weights[: self.progressive_start]
        if self.progressive and not any(first):
            raise InputError(
                f"scale_weights is {weights} and progressive_start {self.progressive_start}; "
                f"expected a weight above 0 among the first {len(first)}, which are trained alone "
                "at first"
            )

    @property
    def adamw(self) -> AdamWConfig:
        """``optimizer`` with the rate that ``base_rate`` gives it."""
        if self.base_rate is None:
            return self.optimizer
        return replace(self.optimizer, learning_rate=self.base_rate * self.batch / 256)

    def remedy(self, share: int) -> str:
        """What to change if memory does not suffice for ``share`` images at once."""
        options = []
        if share > 1:
            options.append(f"--train-transformer.accumulation above {self.accumulation}")
        if not self.recompute:
            options.append("--train-transformer.recompute")
        return " or ".join(options) or "more memory: one image at once is the least"

    def check(self, model: TransformerConfig, images: int) -> None:
        """Raises InputError if ``model``, the number of images or the device does not fit."""
        scales = len(model.schedule)
        steps_of(self.epochs, images, self.batch)
        if self.lora.rank:
            self.lora.check(model)
        if self.scale_weights and len(self.scale_weights) != scales:
            raise InputError(
                f"scale_weights has {len(self.scale_weights)} numbers; expected {scales}, "
                "one per scale"
            )
        if self.progressive and self.progressive_start > scales:
            raise InputError(
                f"progressive_start is {self.progressive_start}; expected at most {scales}"
            )
        workers.shares(self.batch, self.accumulation)
        check_device(self, model)


class TransformerTraining:
    """The stage as the training loop runs it, on this worker; trains ``model`` in place.

    Raises InputError for a tokenizer that is not the model's, a batch that is larger than the data
    or has less than an image a worker, and settings for another number of scales.
    """

    name = "transformer"

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        train: TokenSource,
        val: TokenSource,
        config: TransformerStageConfig,
        seed: int,
        sampling: SamplingConfig | None = None,
        judge: ValidationJudge | None = None,
    ) -> None:
        """sampling: how validations draw, for a grid and a judge; ``per_class`` is not read."""
        check_pair(model, tokenizer)
        for source in (train, val):
            if isinstance(source, TokenSet):
                source.check_ids(tokenizer.vocab_size)
        config.check(model.config, len(train))
        if config.flip and not train.mirrors:
            raise InputError("flip is True; expected tokens of mirrored images, too")
        self._model, self._tokenizer, self._config, self._seed = model, tokenizer, config, seed
        self._train, self._val = train, val
        self._sampling, self._judge = sampling or SamplingConfig(), judge
        self.best_by = (judge and judge.best_by) or BY_LOSS
        self.batch = config.batch
        self.steps = steps_of(config.epochs, len(train), config.batch)
        self._share = -(-config.batch // (workers.size() * config.accumulation))  # the largest
        self.remedy = config.remedy(self._share)
        rate = model.config.drop_path if config.drop_path is None else config.drop_path
        self._drop_rates_d = np.linspace(0, rate, model.config.depth)
        self._loss_scale = LossScale(config.precision)
        self._watch, self._attention = Stopwatch(), AttentionChoice(model)
        parts = self.steps * config.accumulation
        self._loader = Loader(train, self._prepare, parts, self._share)
        self.checkpoint_bytes = training_bytes(self._kept()[1], config.ema > 0)
        workers.synchronize(list(model.get_parameters()))
        self._compile()

    # ------------------------------------------------------------ the step
    def train_step(self, step: int) -> dict[str, Value]:
        """Takes one step; its randomness comes from the seed and the number of the step.

        Random numbers are drawn for the whole batch, of which each worker takes its share.
        Raises InputError if memory does not suffice.
        """
        with needing_memory("training the transformer", self.remedy):
            return self._train_step(step)

    def _train_step(self, step: int) -> dict[str, Value]:
        config, scale = self._config, self._loss_scale.value
        losses: list[float] = []
        gradients: Any = None
        chosen: dict[str, Value] = {}
        for number in range(config.accumulation):
            with self._watch("data"):
                part, take = self._loader.take_with_all(step * config.accumulation + number)
            with self._watch("tokens"):
                tokens = take()
            if self._attention.is_open:
                with self._watch("attention"):
                    inputs = self._inputs(part, tokens, len(self._model.config.schedule), 1.0)
                    inputs = (*inputs, Tensor(np.float32(scale)))
                    self._gradients, chosen = self._attention.choose(self._new_gradients, inputs)
            with self._watch("tokens"):
                inputs = self._inputs(part, tokens, *self._scales_at(step))
            with self._watch("forward_backward"):
                loss, found = self._gradients(*inputs, Tensor(np.float32(scale * part.weight)))
                found = ms.mutable(found)  # plain tuples would be compiled as constants
                gradients = found if gradients is None else ms.mutable(self._add(gradients, found))
                losses.append(float(loss) * part.weight)
        with self._watch("optimizer"):
            divisor = Tensor(np.float32(scale * config.accumulation))
            scalars = self._optimizer.scalars(step, self.steps)
            norm = float(self._update(gradients, scalars, divisor))
            release_gradients(gradients)
            finite = self._optimizer.count(norm)
            self._loss_scale.follow(finite)
            if self._ema is not None and finite:
                self._ema.update(step - self._optimizer.skipped)
        metrics: dict[str, Value] = {
            "loss": float(workers.gather(np.array(np.mean(losses))).mean()),
            "learning_rate": self._optimizer.config.rate(step, self.steps),
            "weight_decay": self._optimizer.config.decay(step, self.steps),
            "skipped_steps": self._optimizer.skipped,
        }
        if finite:
            metrics["gradient_norm"] = norm
        if config.precision.dtype == "float16":
            metrics["loss_scale"] = scale
        if config.progressive:
            metrics["scales"] = self._scales_at(step)[0]
        return metrics | chosen | self._watch.lap()

    def _scales_at(self, step: int) -> tuple[int, float]:
        """How many scales, coarse to fine, a step trains, and the share of the newest's weight."""
        scales, config = len(self._model.config.schedule), self._config
        at = (step, self.steps, scales, config.progressive, config.progressive_start)
        return scales_in_training(*at), newest_weight(*at)

    def _prepare(self, number: int) -> tuple[Part, Callable[[], Batch]]:
        """A part, counted from the first of step 0, and its data, read; in any thread."""
        step, which = divmod(number, self._config.accumulation)
        drawing = self._config, len(self._train), self._drop_rates_d, self._seed
        part = draw_part(*drawing, step, which)
        return part, read_tokens(self._train, part.indices_b, part.flip_b, part.place_of)

    def close(self) -> None:
        """Ends the threads that read ahead; the next step would start them again."""
        self._loader.close()

    def _inputs(self, part: Part, tokens: Batch, scales: int, newest: float) -> tuple[Tensor, ...]:
        """What the compiled step reads, of the first ``scales`` scales; newest: as _scales_at."""
        schedule = self._model.config.schedule
        length = schedule.offsets[scales]
        ids_bl, labels_b = tokens[0], self._labels(tokens[1])
        labels_b = np.where(part.unlabelled_b, self._model.config.num_classes, labels_b)
        inputs_blz = self._tokenizer.training_inputs(Tensor(ids_bl))
        inputs_blz = inputs_blz[:, : length - schedule.tokens[0]]
        weights_k = np.array(self._config.scale_weights or (1.0,) * len(schedule), float)
        weights_k[scales - 1] *= newest
        weights_l = np.repeat(weights_k, schedule.tokens)[:length].astype(np.float32)
        weights_l /= weights_l.mean()
        labels_b = Tensor(labels_b.astype(np.int32))
        ids_bl = Tensor(np.ascontiguousarray(ids_bl[:, :length]))
        return labels_b, inputs_blz, ids_bl, Tensor(part.keep_d2b11), Tensor(weights_l)

    # ------------------------------------------------------------ compilation
    def _compile(self) -> None:
        """Builds the steps as closures; MindSpore compiles them at their first call.

        Gradients and update are two graphs, so that each can be timed.
        """
        model, config = self._model, self._config
        several, dtype = workers.size() > 1, DTYPES[config.precision.dtype]
        sharded = config.shard_optimizer and several
        once = config.accumulation == 1  # average during the backward pass, or at the end
        pieces = workers.size() if sharded else 1
        self._weights = weights = self._trained(dtype, once and several, pieces)
        parameters = list(weights.masters)
        sharding = Sharding(parameters) if sharded else None
        self._optimizer = optimizer = AdamW(parameters, config.adamw, weights.is_decayed, sharding)
        self._ema = Ema(parameters, config.ema) if config.ema else None
        self._average = average = AllReduceMean(list(weights.trained))
        add = ops.HyperMap()

        @ms.jit
        def sum_of(total: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return add(ops.add, total, found)

        @ms.jit
        def update(found: tuple[Tensor, ...], scalars_3: Tensor, divisor: Tensor) -> Tensor:
            found = weights.gradients(found) if once else average(found)
            return weights.refresh(optimizer(weights.of_masters(found), scalars_3, divisor, found))

        @ms.jit
        def measure(labels_b: Tensor, inputs_blz: Tensor, ids_bl: Tensor) -> tuple[Tensor, Tensor]:
            logits_blv = model(labels_b, inputs_blz)
            hit_bl = logits_blv.argmax(-1).astype(ms.int32) == ids_bl
            return token_losses(logits_blv, ids_bl, 0.0), hit_bl

        self._gradients = self._new_gradients()
        self._add, self._update, self._measure = sum_of, update, measure

    def _trained(self, dtype: ms.Type, averages: bool, pieces: int) -> OwnWeights | FlatWeights:
        """What the optimizer updates."""
        return weights_in_training(self._model, is_decayed, dtype, averages, pieces)

    def _new_gradients(self) -> Callable:
        """Loss and gradients, with the attention that the model uses when it is first called."""
        model, config, weights = self._model, self._config, self._weights
        average, once = self._average, config.accumulation == 1
        gradients_of = loss_and_gradients(model, weights, config.label_smoothing, config.recompute)

        @ms.jit
        def gradients(*inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            loss, found = gradients_of(*inputs)
            if not once:  # parts are added up in float32
                found = weights.gradients(found)
            elif not weights.averages:
                found = average(found)
            return loss, found

        return gradients

    # ------------------------------------------------------------ held-out images
    def validate(self, step: int) -> dict[str, Value]:
        """Measures held-out images: teacher forced, with labels, no dropout, weights to save.

        ``loss`` is the mean cross entropy of a token in nats, ``accuracy`` the share of tokens
        whose likeliest prediction is right; ``scale_loss`` and ``scale_accuracy`` are K numbers
        each, coarse to fine. ``samples`` is a grid of generated images. A judge adds its figures.
        """
        with averaged(self._ema):
            self._weights.publish()
            found: dict[str, Value] = {**self._measured(), **self._drawn()}
        workers.wait_for_all()
        return found

    def _drawn(self) -> dict[str, Value]:
        """A grid on worker 0, and what the judge says."""
        found: dict[str, Value] = {}
        pair, rest = (self._model, self._tokenizer), (self._sampling, self._seed)
        if workers.rank() == 0 and self._config.samples_per_class:
            found["samples"] = draw_grid(*pair, self._config.samples_per_class, *rest)
        return found if self._judge is None else found | self._judge.judge(*pair, *rest)

    def _labels(self, labels_b: np.ndarray) -> np.ndarray:
        """The model's numbers of classes that have these numbers in the data."""
        return labels_b

    def _measured(self) -> dict[str, float | list[float]]:
        share, schedule = self._share, self._model.config.schedule
        count = min(self._config.validation_images, len(self._val))
        chosen = np.linspace(0, len(self._val) - 1, count).round().astype(int)
        sums_2l = np.zeros((2, schedule.length))
        batches = padded_batches(count, share)
        own = range(workers.rank(), len(batches), workers.size())

        def read(n: int) -> Callable[[], Batch]:
            return read_tokens(self._val, chosen[batches[own[n]]])

        for number, take in zip(own, read_ahead(self._val, read, len(own), share), strict=True):
            ids_bl, labels_b = take()
            wanted = min(share, count - number * share)  # cut off what fills the last batch up
            ids_bl = Tensor(ids_bl)
            with needing_memory("validating", self.remedy):
                loss_bl, hit_bl = self._measure(
                    Tensor(self._labels(labels_b)), self._tokenizer.training_inputs(ids_bl), ids_bl
                )
            sums_2l[0] += loss_bl.asnumpy()[:wanted].sum(0, dtype=np.float64)
            sums_2l[1] += hit_bl.asnumpy()[:wanted].sum(0)
        loss_l, hit_l = workers.all_reduce_sum(sums_2l) / count
        return {
            "loss": float(loss_l.mean()),
            "accuracy": float(hit_l.mean()),
            "scale_loss": [float(part.mean()) for part in schedule.split(loss_l, 0)],
            "scale_accuracy": [float(part.mean()) for part in schedule.split(hit_l, 0)],
        }

    def finish(self) -> None:
        """Gives the model the weights to save."""
        if self._ema is not None:
            self._ema.copy_to_parameters()
        self._weights.publish()

    def save(self, path: Path) -> None:
        """Writes the transformer, with its averaged weights where there are some."""
        with averaged(self._ema):
            self._weights.publish()
            self._model.save(path)

    # ------------------------------------------------------------ resumption
    def metadata(self) -> dict[str, str]:
        """What a native file of the transformer says besides its weights."""
        return self._model.metadata()

    def _kept(self) -> tuple[str, list[Parameter]]:
        """The parameters that a checkpoint holds, and their group in it."""
        return "transformer", list(self._model.get_parameters())

    def state(self) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
        """Everything that later steps depend on."""
        self._weights.publish()
        moments, optimizer = self._optimizer.snapshot("optimizer")
        weights = self._model.trainable_params()
        optimizer["undecayed"] = [p.name for p in weights if not is_decayed(p)]
        averages = {} if self._ema is None else self._ema.snapshot("ema")
        others = self._weights.named(ArraysOnDemand.joined(moments, averages))
        arrays = ArraysOnDemand.joined(parameter_arrays(*self._kept()), others)
        state = {"optimizer": optimizer, "loss_scale": self._loss_scale.state()}
        return arrays, state | {"attention": self._attention.name}

    def restore(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Restores what ``state`` returned.

        Raises InputError if only one, the run or the checkpoint, has averaged weights.
        """
        check_averages(self._config.ema, arrays)
        restore_parameters(*self._kept(), arrays)
        self._weights.collect()
        arrays = self._weights.flattened(arrays)
        self._optimizer.restore("optimizer", arrays, state["optimizer"])
        if state["loss_scale"] is not None:  # of another framework: it starts anew
            self._loss_scale.restore(state["loss_scale"])
        if self._ema is not None:
            self._ema.restore("ema", arrays)
        self._attention.restore(state.get("attention"))
        workers.check_equal(list(self._model.get_parameters()))
