"""A training run from its settings to its report."""

import logging
import resource
import time
from contextlib import closing
from dataclasses import replace
from typing import cast

import numpy as np
from var_tokenizer import Tokenizer
from var_tokenizer.common import fewer_images, images_that_fit, needing_memory
from var_tokenizer.common.progress import working
from var_transformer import Transformer

from var_train.commands.models import (
    build_tokenizer,
    build_transformer,
    transformer_config,
)
from var_train.commands.preparation import Source, begin_run, load_data
from var_train.commands.run_config import (
    TOKENIZER_FILE,
    RunConfig,
    TransformerSizeConfig,
    starts_from_tokenizer,
)
from var_train.data.image_sources import ImageSet, ImageSource
from var_train.data.token_cache import TokenCache
from var_train.data.token_sources import fingerprint, tokens_of
from var_train.judging.validations import ValidationJudge
from var_train.parallel import workers
from var_train.reports.digit_metrics import DigitReport
from var_train.reports.images import save_reconstructions, save_samples
from var_train.reports.json_files import write_report
from var_train.reports.startup import Startup
from var_train.reports.tokenizer_quality import measure_reconstructions
from var_train.training.adapter_training import AdapterTraining
from var_train.training.loop import train_stage
from var_train.training.saving import training_bytes
from var_train.training.tokenizer_stage import TokenizerTraining
from var_train.training.transformer_stage import TransformerTraining

log = logging.getLogger(__name__)

_BATCH = "--train-tokenizer.batch"


class _Laps:
    """The seconds of each part of a run."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def end(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part], self._last = round(now - self._last, 1), now

    def total(self) -> float:
        return round(time.monotonic() - self._started, 1)


def run_training(config: RunConfig, startup: Startup | None = None) -> dict[str, object]:
    """Trains, samples and reports; returns the content of ``report.json``.

    startup: of the command, where the process began for this run.

    Raises InputError for unusable data or settings, before any file is written.
    """
    laps, startup = _Laps(), startup or Startup()
    tokenizer = build_tokenizer(config)
    startup.end("models")
    train, val = load_data(config, tokenizer)
    startup.end("data")
    given: dict[str, object] = {"init": None}
    first_stage, model = None, None
    sizes: dict[str, int] = {}  # of a checkpoint of each stage
    if config.trains_tokenizer:
        images = cast(tuple[ImageSource, ImageSource], (train, val))  # as RunConfig makes sure
        config = replace(config, tokenizer=tokenizer.config)
        is_given = starts_from_tokenizer(config)
        if is_given:
            given["init"] = fingerprint(tokenizer)
        first_stage = TokenizerTraining(
            tokenizer, *images, config.train_tokenizer, config.seed, keeps_codebook=is_given
        )
        sizes["tokenizer"] = first_stage.checkpoint_bytes
    else:
        given["tokenizer"] = fingerprint(tokenizer)
    if config.trains_transformer:
        size = transformer_config(config, tokenizer, train.classes)
        config.train_transformer.check(size, len(train))
        config.sampling.sampler().check(len(tokenizer.schedule), tokenizer.vocab_size)
        model, checksum = build_transformer(config, tokenizer, train.classes)
        given["init"] = given["init"] or checksum
        # an adapter's checkpoints are small
        kept = [] if config.train_transformer.lora.rank else list(model.get_parameters())
        sizes["transformer"] = training_bytes(kept, config.train_transformer.ema > 0)
        config = replace(config, transformer=TransformerSizeConfig.of(model.config))
    log.info("%d training and %d validation images", len(train), len(val))
    judge = None
    if config.loop.judge.samples:
        held_out = None if isinstance(val, TokenCache) else val
        judge = ValidationJudge(config.loop.judge, held_out)
    startup.end("models")
    metrics, settings, record = begin_run(config, given, train, val, sizes)
    startup.end("checks of what is there")

    figures: dict[str, object] = {}
    if first_stage is not None:
        rest = config.loop, settings["tokenizer"], config.resume, record, startup
        with closing(first_stage):
            train_stage(first_stage, config.out, metrics, *rest)
        first_stage.finish()
        if workers.rank() == 0:
            tokenizer.save(config.out / TOKENIZER_FILE)
            with working("drawing reconstructions"):
                batch = _tokenizer_batch(config, tokenizer)
                save_reconstructions(
                    tokenizer, images[1], config.out / "reconstructions.png", batch
                )
        laps.end("tokenizer")
    if model is not None:
        # workers encode batches of one size
        batch = int(workers.gather(np.array(_tokenizer_batch(config, tokenizer))).min())
        with needing_memory(f"encoding {batch} images at once", fewer_images(_BATCH, batch)):
            train_tokens = tokens_of(tokenizer, train, batch, config.train_transformer.flip)
            val_tokens = tokens_of(tokenizer, val, batch)
        laps.end("tokens")
        startup.end("tokens")
        trained = model, tokenizer, train_tokens, val_tokens, config.train_transformer, config.seed
        second_stage: TransformerTraining
        if config.train_transformer.lora.rank:
            model.tokenizer_checksum = model.tokenizer_checksum or tokenizer.checksum()
            adapting = second_stage = AdapterTraining(
                *trained, train.classes, config.sampling, judge
            )
            figures["trained_share"] = round(adapting.share, 6)
        else:
            model.class_names, model.tokenizer_checksum = train.classes, tokenizer.checksum()
            second_stage = TransformerTraining(*trained, config.sampling, judge)
        startup.end("models")
        depends_on = settings["transformer"] | {"tokenizer": fingerprint(tokenizer)}
        rest = config.loop, depends_on, config.resume, record, startup
        with closing(second_stage):
            figures |= train_stage(second_stage, config.out, metrics, *rest)
        second_stage.finish()
        laps.end("transformer")
    if workers.rank() == 0:
        figures |= _draw_and_measure(config, tokenizer, model, train, val, laps)
    figures["seconds"] = laps.seconds
    figures["total_seconds"] = laps.total()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    figures["peak_memory_gib"] = round(peak / 2**20, 2)
    if workers.rank() == 0:
        write_report(config.out / "report.json", figures)
        log.info("wrote %s", config.out.resolve())
    metrics.close()
    workers.wait_for_all()
    return figures


def _tokenizer_batch(config: RunConfig, tokenizer: Tokenizer) -> int:
    """How many images the tokenizer encodes or decodes at once outside of its training."""
    return images_that_fit(tokenizer.config.bytes_per_image, config.train_tokenizer.batch)


def _draw_and_measure(
    config: RunConfig,
    tokenizer: Tokenizer,
    model: Transformer | None,
    train: Source,
    val: Source,
    laps: _Laps,
) -> dict[str, object]:
    """Saves the transformer and its samples; returns the figures of both trained models."""
    figures: dict[str, object] = {}
    digits = None
    are_digits = model is not None and config.data is None and model.class_names == train.classes
    if are_digits and isinstance(train, ImageSet) and isinstance(val, ImageSet):
        digits = DigitReport(train, val)
    if isinstance(val, ImageSet):
        batch = _tokenizer_batch(config, tokenizer)
        judged = [] if digits is None else [digits.add_reconstructions]
        with needing_memory(f"decoding {batch} images at once", fewer_images(_BATCH, batch)):
            figures |= measure_reconstructions(tokenizer, val, batch, *judged)
    if model is None:
        return figures
    if not config.train_transformer.lora.rank:
        model.save(config.out / "transformer.safetensors")
    judge = None if digits is None else digits.add_class
    at = config.sampling, config.seed, config.out / "samples.png"
    save_samples(model, tokenizer, model.class_names or train.classes, *at, judge)
    laps.end("sampling")
    if digits is not None:
        with working("judging the digits"):
            figures |= digits.figures()
    return figures
