"""Stage 2: the transformer, trained to predict each token map from the coarser ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, needing_memory
from var_transformer import Transformer, check_pair

from var_train.data.batches import padded_batches, steps_of
from var_train.data.image_sources import Batch
from var_train.data.loader import Loader, read_ahead
from var_train.data.token_sources import TokenSet, TokenSource, read_tokens
from var_train.judging.validations import ValidationJudge
from var_train.losses.token_loss import token_losses
from var_train.objectives.contrast import Contrast, reference_of
from var_train.objectives.guidance_free import GuidanceFree
from var_train.objectives.likelihood import Examples, Likelihood
from var_train.optimization.adamw import AdamW, is_decayed, release_gradients
from var_train.optimization.averages import Ema, averaged, check_averages
from var_train.optimization.flat_weights import FlatWeights, OwnWeights, weights_in_training
from var_train.optimization.loss_scale import DTYPES, LossScale
from var_train.parallel import workers
from var_train.parallel.gradients import AllReduceMean
from var_train.parallel.sharding import Sharding
from var_train.reports.images import SamplingConfig, draw_grid
from var_train.reports.metrics_log import Value
from var_train.training.attention_choice import AttentionChoice
from var_train.training.checkpoints import ArraysOnDemand, parameter_arrays, restore_parameters
from var_train.training.loop import BY_LOSS, Stopwatch
from var_train.training.progressive import newest_weight, scales_in_training
from var_train.training.saving import training_bytes
from var_train.training.step_parts import Part, draw_part
from var_train.training.transformer_gradients import loss_and_gradients
from var_train.training.transformer_settings import TransformerStageConfig


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
        self.best_by = (judge and judge.best_by(self._sampling)) or BY_LOSS
        self.batch = config.batch
        self.steps = steps_of(config.epochs, len(train), config.batch)
        self._share = -(-config.batch // (workers.size() * config.accumulation))  # the largest
        self.remedy = config.remedy(self._share)
        self._drop_rates_d = np.linspace(0, config.drop_rate(model.config), model.config.depth)
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
                    self._objective = self._new_objective()
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
        mismatched_b = self._labels(self._train.labels_n[part.mismatched_b])
        inputs_blz = self._tokenizer.training_inputs(Tensor(ids_bl))
        inputs_blz = inputs_blz[:, : length - schedule.tokens[0]]
        weights_k = np.array(self._config.scale_weights or (1.0,) * len(schedule), float)
        weights_k[scales - 1] *= newest
        weights_l = np.repeat(weights_k, schedule.tokens)[:length].astype(np.float32)
        weights_l /= weights_l.mean()
        examples = Examples(
            labels_b=Tensor(labels_b.astype(np.int32)),
            mismatched_b=Tensor(mismatched_b.astype(np.int32)),
            inputs_blz=inputs_blz,
            ids_bl=Tensor(np.ascontiguousarray(ids_bl[:, :length])),
            keep_d2b11=Tensor(part.keep_d2b11),
            weights_l=Tensor(weights_l),
        )
        return self._objective.inputs(examples)

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

        self._reference = self._new_reference() if config.objective == "cca" else None
        self._objective = self._new_objective()
        self._gradients = self._new_gradients()
        self._add, self._update, self._measure = sum_of, update, measure

    def _trained(self, dtype: ms.Type, averages: bool, pieces: int) -> OwnWeights | FlatWeights:
        """What the optimizer updates."""
        return weights_in_training(self._model, is_decayed, dtype, averages, pieces)

    def _new_reference(self) -> Transformer:
        """The model before training."""
        return reference_of(self._model, copied=True)

    def _new_objective(self) -> Likelihood | Contrast | GuidanceFree:
        """Its passes attend as the model does when they are first called."""
        config = self._config
        if self._reference is not None:
            return Contrast(config.cca, self._reference)
        if config.objective == "gft":
            of_model = self._model, self._weights
            return GuidanceFree(config.gft, config.label_smoothing, *of_model)
        return Likelihood(config.label_smoothing)

    def _new_gradients(self) -> Callable:
        """Loss and gradients, with the attention that the model uses when it is first called."""
        model, config, weights = self._model, self._config, self._weights
        average, once = self._average, config.accumulation == 1
        loss = self._objective.loss
        gradients_of = loss_and_gradients(model, weights, loss, config.recompute)

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

        ``loss`` (``cross_entropy``, where it is not the objective) is the mean cross entropy of a
        token in nats, ``accuracy`` the share of tokens
        whose likeliest prediction is right; ``scale_loss`` and ``scale_accuracy`` are K numbers
        each, coarse to fine. ``samples`` is a grid of generated images. A judge adds its figures.
        """
        with averaged(self._ema):
            self._weights.publish()
            found: dict[str, Value] = {**self._measured(), **self._drawn()}
            if self._config.objective != "likelihood":  # the best model is not the likeliest
                found["cross_entropy"] = found.pop("loss")
        workers.wait_for_all()
        return found

    def _drawn(self) -> dict[str, Value]:
        """A grid on worker 0, and what the judge says."""
        found: dict[str, Value] = {}
        pair, rest = (self._model, self._tokenizer), (self._sampling, self._seed)
        if workers.rank() == 0 and self._config.samples_per_class:
            found["samples"] = draw_grid(*pair, self._config.samples_per_class, *rest)
        if self._judge is None:
            return found
        return found | self._judge.judge(*pair, *rest, self._classes_k)

    @property
    def _classes_k(self) -> np.ndarray:
        """The model's numbers of the classes of the data."""
        return np.arange(self._model.config.num_classes, dtype=np.int32)

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
